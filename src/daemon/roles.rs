//! Which callers have which role: `[control] operators` and `admins`, resolved to numbers.
//!
//! The names are looked up where a configuration is loaded, which may take long; a request only
//! compares numbers. So a change of the keys holds at once for connections that are open, while the
//! groups of a caller are those that it had when it connected.

use std::collections::BTreeSet;

use crate::config;
use crate::protocol::Role;
use crate::protocol::schema::Diagnostic;

use super::control::Caller;
use super::privileges::{group_of_name, user_of_name};

/// See the module. By default there are root and the daemon's own user alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roles {
    operators: Accounts,
    admins: Accounts,
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Accounts {
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

impl Roles {
    /// Looks up all names; those that are unknown are the errors.
    pub(super) fn resolve(settings: &config::Control) -> (Self, Vec<Diagnostic>) {
        let mut unknown = Vec::new();
        let roles = Self {
            operators: Accounts::resolve("operators", &settings.operators, &mut unknown),
            admins: Accounts::resolve("admins", &settings.admins, &mut unknown),
        };
        (roles, unknown)
    }

    /// The role of a caller.
    pub(super) fn of(&self, caller: &Caller) -> Role {
        if caller.is_own() || self.admins.have(caller) {
            Role::Admin
        } else if self.operators.have(caller) {
            Role::Operator
        } else {
            Role::Reader
        }
    }
}

impl Accounts {
    fn resolve(key: &str, names: &[String], unknown: &mut Vec<Diagnostic>) -> Self {
        let mut accounts = Self::default();
        for name in names {
            let (name_alone, numbers) = match name.strip_prefix('@') {
                Some(group) => (group, &mut accounts.gids),
                None => (name.as_str(), &mut accounts.uids),
            };
            // A container may have users without names.
            let number = match number_of(name_alone) {
                Some(number) => Ok(number),
                None if name.starts_with('@') => group_of_name(name_alone).map(|gid| gid.as_raw()),
                None => user_of_name(name_alone).map(|user| user.uid.as_raw()),
            };
            match number {
                Ok(number) => {
                    numbers.insert(number);
                }
                Err(reason) => {
                    let message = format!("[control] {key}: {name}: {reason}");
                    unknown.push(Diagnostic::about(format!("control.{key}"), message));
                }
            }
        }
        accounts
    }

    fn have(&self, caller: &Caller) -> bool {
        let is_listed = |gid: &u32| self.gids.contains(gid);
        self.uids.contains(&caller.uid) || caller.gids.iter().any(is_listed)
    }
}

/// A number as it is written for one, and not the name of an account: no sign, no leading zero. The
/// largest is none (`(uid_t) -1`, chown(2)).
fn number_of(name: &str) -> Option<u32> {
    let number: u32 = name.parse().ok()?;
    (number != u32::MAX && number.to_string() == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(operators: &[&str], admins: &[&str]) -> config::Control {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        config::Control {
            operators: list(operators),
            admins: list(admins),
            ..config::Control::default()
        }
    }

    fn caller(uid: u32, gids: &[u32]) -> Caller {
        Caller {
            pid: 1,
            uid,
            gids: gids.into(),
        }
    }

    #[test]
    fn a_caller_has_the_greatest_role_of_its_user_and_each_of_its_groups() {
        let (roles, unknown) = Roles::resolve(&settings(
            &["4000001", "@4000011"],
            &["4000002", "@4000012", "@root"],
        ));
        assert_eq!(unknown, []);
        let check = |uid, gids: &[u32], role| assert_eq!(roles.of(&caller(uid, gids)), role);
        check(4_000_003, &[4_000_003], Role::Reader);
        // A group of the same number is none of its users.
        check(4_000_011, &[4_000_001], Role::Reader);
        check(4_000_001, &[4_000_003], Role::Operator);
        check(4_000_003, &[4_000_011], Role::Operator);
        check(4_000_003, &[5, 6, 4_000_011], Role::Operator);
        check(4_000_002, &[4_000_003], Role::Admin);
        check(4_000_001, &[4_000_011, 4_000_012], Role::Admin);
        check(4_000_003, &[5, 0], Role::Admin);
    }

    #[test]
    fn root_and_the_daemons_own_user_are_admins_whatever_is_configured() {
        let roles = Roles::default();
        for uid in [0, nix::unistd::geteuid().as_raw()] {
            assert_eq!(roles.of(&caller(uid, &[4_000_001])), Role::Admin);
        }
    }

    #[test]
    fn every_unknown_name_is_an_error_and_the_others_count() {
        let (roles, unknown) = Roles::resolve(&settings(
            &["@no-such-group", "no-such-user"],
            &["no-such-user", "4000002"],
        ));
        let messages: Vec<&str> = unknown.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "[control] operators: @no-such-group: there is no such group: groupadd --system no-such-group",
                "[control] operators: no-such-user: there is no such user: useradd --system --user-group no-such-user",
                "[control] admins: no-such-user: there is no such user: useradd --system --user-group no-such-user",
            ]
        );
        assert_eq!(roles.of(&caller(4_000_002, &[])), Role::Admin);
    }
}

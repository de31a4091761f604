//! The address rules of a listener: `allow` and `deny`, of which the most specific entry decides.
//!
//! Also says what one source is, for `max-per-source`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The rules of one listener. Without any, all sources are permitted. Listeners and workers share the
/// lists, which may be long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Networks that are permitted. Unless it is empty, no other network is.
    pub allow: Arc<[IpNet]>,
    /// Networks that are refused, except for longer prefixes in `allow`.
    pub deny: Arc<[IpNet]>,
}

impl Access {
    /// Whether the rules permit this source address. An IPv4-mapped address is taken for the IPv4
    /// address. Between prefixes of equal length, `deny` decides.
    #[must_use]
    pub fn permits(&self, source: IpAddr) -> bool {
        if self.allow.is_empty() && self.deny.is_empty() {
            return true;
        }
        let source = canonical(source);
        match (longest(&self.allow, source), longest(&self.deny, source)) {
            (Some(allowed), Some(denied)) => allowed > denied,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => self.allow.is_empty(),
        }
    }
}

/// The length in bits of the longest prefix that contains the address; none if no prefix does.
fn longest(nets: &[IpNet], source: IpAddr) -> Option<u8> {
    nets.iter()
        .filter(|net| net.contains(&source))
        .map(IpNet::prefix_len)
        .max()
}

/// The IPv4 address of an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`; RFC 4291, section 2.5.5.2);
/// any other address unchanged.
#[must_use]
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The IPv4 network of an IPv4-mapped one (`::ffff:10.0.0.0/104` is `10.0.0.0/8`); any other network
/// unchanged. It contains what [`canonical`] makes of the addresses in the network.
#[must_use]
pub(crate) fn canonical_network(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    if let (IpAddr::V4(address), Some(prefix_len)) = (
        canonical(network.addr()),
        network.prefix_len().checked_sub(MAPPED_BITS),
    ) && network.addr().is_ipv6()
    {
        return Ipv4Net::new_assert(address, prefix_len).into();
    }
    network
}

/// The prefix that counts as one source: a single IPv4 address, or an IPv6 /64, since a host can use
/// any address of its subnet (RFC 4291, section 2.5.4).
#[must_use]
pub(crate) fn source_prefix(address: IpAddr) -> IpNet {
    match canonical(address) {
        IpAddr::V4(address) => Ipv4Net::from(address).into(),
        IpAddr::V6(address) => {
            let prefix = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64));
            Ipv6Net::new_assert(prefix, 64).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allow: &[&str], deny: &[&str]) -> Access {
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        Access {
            allow: parse(allow),
            deny: parse(deny),
        }
    }

    fn check(access: &Access, source: &str, expected: bool) {
        assert_eq!(
            access.permits(source.parse().unwrap()),
            expected,
            "{source}"
        );
    }

    #[test]
    fn without_rules_every_source_is_permitted() {
        check(&Access::default(), "192.0.2.1", true);
        check(&Access::default(), "2001:db8::1", true);
    }

    #[test]
    fn an_allow_list_refuses_all_other_sources() {
        let access = access(&["10.0.0.0/8"], &[]);
        check(&access, "10.1.2.3", true);
        check(&access, "11.1.2.3", false);
        check(&access, "2001:db8::1", false);
    }

    #[test]
    fn a_deny_list_permits_all_other_sources() {
        let access = access(&[], &["10.0.0.0/8"]);
        check(&access, "10.1.2.3", false);
        check(&access, "11.1.2.3", true);
        check(&access, "2001:db8::1", true);
    }

    #[test]
    fn the_longest_prefix_decides_and_deny_between_equal_ones() {
        let access = access(
            &["10.1.0.0/16", "10.2.0.0/16"],
            &["10.0.0.0/8", "10.1.1.0/24", "10.2.0.0/16"],
        );
        check(&access, "10.1.2.3", true);
        check(&access, "10.1.1.3", false);
        check(&access, "10.3.0.1", false);
        check(&access, "10.2.0.1", false);
    }

    #[test]
    fn a_mapped_address_is_checked_as_the_ipv4_address() {
        let access = access(&[], &["10.0.0.0/8"]);
        check(&access, "::ffff:10.0.0.1", false);
    }

    #[test]
    fn a_mapped_network_is_the_ipv4_network() {
        let check = |network: &str, expected: &str| {
            let network = canonical_network(network.parse().unwrap());
            assert_eq!(network.to_string(), expected);
        };
        check("::ffff:127.0.0.0/104", "127.0.0.0/8");
        check("::ffff:10.1.2.3/128", "10.1.2.3/32");
        check("::ffff:0.0.0.0/96", "0.0.0.0/0");
        // These contain more than IPv4-mapped addresses.
        check("::ffff:0.0.0.0/95", "::ffff:0.0.0.0/95");
        check("::/0", "::/0");
        check("2001:db8::/32", "2001:db8::/32");
        check("127.0.0.0/8", "127.0.0.0/8");
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_subnet() {
        let prefix = |address: &str| source_prefix(address.parse().unwrap()).to_string();
        assert_eq!(prefix("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(prefix("::ffff:10.1.2.3"), "10.1.2.3/32");
        assert_eq!(prefix("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    }
}

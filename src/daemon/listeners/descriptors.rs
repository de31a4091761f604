//! How many descriptors a configuration needs, before any is opened: thousands of listeners may exceed
//! the limit of the process, and that is better found at once than after some seconds of binding.

use crate::config::{self, Address};
use crate::sys::process;

use super::bind;
use super::failures::MORE_DESCRIPTORS;

/// How many descriptors the sockets of a listener take: one of ours for each socket, and one for each
/// worker that serves it. Addresses that this host may do without are not counted.
fn needed(listener: &config::Listener, workers: usize) -> u64 {
    let count = bind::sockets_per_address(listener, workers);
    let handles = if listener.protocol.is_stream() {
        count.max(workers)
    } else {
        count
    };
    let is_optional = |address: &&Address| matches!(address, Address::Inet { optional: true, .. });
    let addresses = listener.addresses.iter();
    let addresses = addresses.filter(|address| !is_optional(address)).count();
    addresses as u64 * (count + handles) as u64
}

/// Refuses listeners that need more descriptors than this process may have.
///
/// # Errors
/// How many they need, and what to do.
pub(crate) fn check<'a>(
    listeners: impl Iterator<Item = &'a config::Listener>,
    workers: usize,
) -> Result<(), String> {
    let needed = listeners.map(|listener| needed(listener, workers)).sum();
    let limit = process::descriptor_limit();
    let excess = limit.and_then(|limit| excess(needed, limit));
    excess.map_or(Ok(()), Err)
}

/// Why a configuration that needs more descriptors than the limit is refused.
fn excess(needed: u64, limit: u64) -> Option<String> {
    (needed > limit).then(|| {
        format!(
            "the listeners need at least {needed} descriptors, and the limit is {limit}: {MORE_DESCRIPTORS}, \
             or configure fewer addresses or sockets"
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Protocol};

    use super::*;

    #[test]
    fn a_socket_needs_one_descriptor_and_one_for_each_worker_that_serves_it() {
        let config = Config::embedded();
        for protocol in Protocol::ALL {
            for sockets in [None, Some(1), Some(3), Some(5)] {
                let listener = config::Listener {
                    protocol,
                    sockets,
                    ..config.listeners["tcp"].clone()
                };
                let workers = 3;
                let count = bind::sockets_per_address(&listener, workers);
                let each = (0..count)
                    .map(|index| 1 + bind::servers(&listener, index, count, workers).len() as u64);
                // `localhost` has an address that is optional.
                assert_eq!(
                    needed(&listener, workers),
                    each.sum::<u64>(),
                    "{listener:?}"
                );
            }
        }
    }

    #[test]
    fn a_configuration_is_refused_if_it_needs_more_than_there_are() {
        assert_eq!(excess(1024, 1024), None);
        let refusal = excess(36_000, 1024).unwrap();
        assert!(
            refusal.contains("36000") && refusal.contains("LimitNOFILE="),
            "{refusal}"
        );
    }
}

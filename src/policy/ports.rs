//! The source ports of a UDP listener: `refuse-source-ports`.
//!
//! The source of a datagram is easily forged. A datagram that claims to come from another service
//! which answers everything, such as echo (RFC 862) or chargen (RFC 864), makes the two answer each
//! other without end (CVE-2024-2169). Clients send from ephemeral ports (RFC 6335, section 6), so
//! datagrams from the ports of services are not answered.
//!
//! The same configuration on every host makes the ports of this daemon such ports, too: two daemons
//! on port 7007 would answer each other. [`RefusedPorts`] is the value of the key and
//! [`SourcePorts`] the set that follows from it and from the ports in service.

use std::ops::RangeInclusive;
use std::sync::Arc;

/// The value of `refuse-source-ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RefusedPorts {
    /// `"default"`: the ports of well-known services and each UDP port that this daemon serves.
    #[default]
    Default,
    /// A list, or `"none"` for an empty one: exactly the ports that are written.
    Listed(SourcePorts),
}

impl RefusedPorts {
    /// Returns the set of ports to refuse, given that of `"default"` for the ports in service.
    #[must_use]
    pub fn or_default(&self, default: &SourcePorts) -> SourcePorts {
        match self {
            Self::Default => default.clone(),
            Self::Listed(ports) => ports.clone(),
        }
    }
}

/// A set of ports whose datagrams are not answered.
///
/// The ranges are sorted and neither overlap nor touch, so that equal sets compare equal. Listeners
/// share the memory of a set, which has as many ranges as the daemon has ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePorts(Arc<[RangeInclusive<u16>]>);

impl SourcePorts {
    /// What `"default"` is: the ports of well-known services and each UDP port that this daemon serves.
    #[must_use]
    pub fn of_services_and(own: impl IntoIterator<Item = u16>) -> Self {
        let services = Self::default();
        let own = own.into_iter().map(|port| port..=port);
        services.ranges().iter().cloned().chain(own).collect()
    }

    /// The empty set: datagrams from every port are answered.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new([]))
    }

    /// Whether datagrams from this port are refused.
    #[must_use]
    pub fn refuses(&self, port: u16) -> bool {
        let at = self.0.partition_point(|range| *range.end() < port);
        self.0.get(at).is_some_and(|range| range.contains(&port))
    }

    /// The ranges of ports, in ascending order.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

impl Default for SourcePorts {
    /// The ports of well-known services: the privileged ports, which inetd of OpenBSD refuses as
    /// well, and SSDP, NFS, mDNS and memcached, which have higher ones.
    fn default() -> Self {
        [
            0..=1023,
            1900..=1900,
            2049..=2049,
            5353..=5353,
            11211..=11211,
        ]
        .into_iter()
        .collect()
    }
}

impl FromIterator<RangeInclusive<u16>> for SourcePorts {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut given: Vec<_> = ranges
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        given.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in given {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ports: &SourcePorts, refused: &[u16], answered: &[u16]) {
        for port in refused {
            assert!(ports.refuses(*port), "{port}");
        }
        for port in answered {
            assert!(!ports.refuses(*port), "{port}");
        }
    }

    #[test]
    fn the_default_refuses_the_ports_of_well_known_services() {
        let refused = [0, 1, 7, 19, 53, 123, 1023, 1900, 2049, 5353, 11211];
        let answered = [1024, 1899, 1901, 7007, 32_768, 49_152, u16::MAX];
        check(&SourcePorts::default(), &refused, &answered);
    }

    #[test]
    fn the_empty_set_refuses_no_port() {
        check(&SourcePorts::none(), &[], &[0, 7, 1024, u16::MAX]);
    }

    #[test]
    fn a_set_refuses_exactly_the_ports_in_it() {
        let ports = [19..=19, 7..=7, 65_000..=u16::MAX].into_iter().collect();
        let refused = [7, 19, 65_000, u16::MAX];
        check(&ports, &refused, &[0, 6, 8, 18, 20, 1023, 64_999]);
    }

    #[test]
    fn equal_sets_compare_equal_in_whatever_form_they_were_written() {
        let given = [
            9..=9,
            u16::MAX..=u16::MAX,
            5..=7,
            1..=6,
            8..=8,
            8..=8,
            65_534..=65_535,
        ];
        let ports: SourcePorts = given.into_iter().collect();
        assert_eq!(ports.ranges(), [1..=9, 65_534..=u16::MAX]);
    }

    #[test]
    fn the_default_includes_the_ports_of_this_daemon() {
        let ports =
            RefusedPorts::Default.or_default(&SourcePorts::of_services_and([7007, 40_000, 7]));
        check(&ports, &[7, 53, 7007, 40_000, 11211], &[7006, 7008, 39_999]);
        assert_eq!(
            SourcePorts::of_services_and([]),
            SourcePorts::default(),
            "without sockets it is the ports of services alone"
        );
    }

    #[test]
    fn a_list_stays_as_written_whichever_ports_this_daemon_serves() {
        let lists = [
            SourcePorts::none(),
            [7..=7].into_iter().collect(),
            // The ports of the default, written out, are a list like any other.
            SourcePorts::default(),
        ];
        for list in lists {
            let default = SourcePorts::of_services_and([7007]);
            let ports = RefusedPorts::Listed(list.clone()).or_default(&default);
            assert_eq!(ports, list);
        }
    }
}

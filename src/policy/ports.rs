//! The source ports of a listener for datagrams: `refuse-source-ports`.
//!
//! A datagram's source is easily forged. One that seems to come from the port of another service
//! which answers whatever it gets makes the two answer each other for ever (CVE-2024-2169); whoever
//! sends it is seen no more. So those are not answered that come from where only services are.

use std::ops::RangeInclusive;

/// Ports that are not answered: in order and with room between them, so that a set has one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePorts(Vec<RangeInclusive<u16>>);

impl SourcePorts {
    /// Every port is answered.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Whether datagrams from this port are not answered.
    #[must_use]
    pub fn refuses(&self, port: u16) -> bool {
        let at = self.0.partition_point(|range| *range.end() < port);
        self.0.get(at).is_some_and(|range| range.contains(&port))
    }

    /// The ports, in order.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

impl Default for SourcePorts {
    /// The ports of services: those that take a privilege to bind (OpenBSD's inetd refuses them),
    /// and SSDP, NFS, mDNS and memcached, which answer from above those.
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
        Self(merged)
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
    fn by_default_the_ports_of_services_are_refused() {
        let refused = [0, 1, 7, 19, 53, 123, 1023, 1900, 2049, 5353, 11211];
        let answered = [1024, 1899, 1901, 7007, 32_768, 49_152, u16::MAX];
        check(&SourcePorts::default(), &refused, &answered);
    }

    #[test]
    fn without_ports_all_are_answered() {
        check(&SourcePorts::none(), &[], &[0, 7, 1024, u16::MAX]);
    }

    #[test]
    fn a_list_refuses_what_is_in_it() {
        let ports = [19..=19, 7..=7, 65_000..=u16::MAX].into_iter().collect();
        let refused = [7, 19, 65_000, u16::MAX];
        check(&ports, &refused, &[0, 6, 8, 18, 20, 1023, 64_999]);
    }

    #[test]
    fn the_same_ports_are_the_same_however_they_are_given() {
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
}

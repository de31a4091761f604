//! One datagram in, one out: same size, never truncated, never merged.
//!
//! Knows which datagrams can be answered whole. Which peers are answered at all is decided by
//! `policy`.

use super::{Answer, Reply};

/// The largest datagram that is answered, in bytes: the largest payload of UDP over IPv6.
///
/// UDP's length field of 16 bits counts its header of 8 bytes (RFC 768), and IPv6's does not count
/// the IPv6 header (RFC 8200, section 3): 65,535 − 8. Over IPv4 the limit is 65,507 bytes, for
/// IPv4's length field counts its header of 20 bytes (RFC 791, section 3.1); the network enforces
/// that. Unix datagrams have no limit of their own, so this one holds for them.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Why a datagram from a permitted peer is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswerable {
    /// The datagram is larger than [`DATAGRAM_BYTES_MAX`] or was truncated on receipt. A partial
    /// echo would look like a fault of the network.
    Oversize,
    /// The peer has no address to answer to: an unbound Unix socket, or UDP port 0.
    NoAddress,
}

/// Turns received datagrams of one peer into their answers, in place. An empty datagram is data like
/// any other.
///
/// Several datagrams may arrive in one buffer (`UDP_GRO`, udp(7)). `size` is that of each as it was
/// sent, in bytes; the last one may be shorter. It is larger than the buffer's content for a single
/// datagram that was truncated. `has_address`: the peer has an address to answer to.
///
/// # Errors
/// [`Unanswerable`] if an answer would be incomplete or has no destination. The bytes may have been
/// changed.
pub(crate) fn answer(
    reply: Reply,
    size: usize,
    has_address: bool,
    bytes: &mut [u8],
) -> Result<Answer, Unanswerable> {
    if size > DATAGRAM_BYTES_MAX || size > bytes.len() {
        return Err(Unanswerable::Oversize);
    }
    match reply.answer(bytes) {
        Answer::Drop => Ok(Answer::Drop),
        Answer::Send if has_address => Ok(Answer::Send),
        Answer::Send => Err(Unanswerable::NoAddress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_datagram_is_answered() {
        assert_eq!(answer(Reply::Echo, 0, true, &mut []), Ok(Answer::Send));
    }

    #[test]
    fn the_largest_datagrams_of_ipv4_and_ipv6_are_answered() {
        for size in [65_507, 65_508, 65_527] {
            let answer = answer(Reply::Echo, size, true, &mut vec![7; size]);
            assert_eq!(answer, Ok(Answer::Send), "{size} bytes");
        }
    }

    #[test]
    fn a_datagram_larger_than_udp_can_carry_is_not_answered() {
        for size in [65_528, 65_536, 100_000] {
            let answer = answer(Reply::Echo, size, true, &mut vec![7; size]);
            assert_eq!(answer, Err(Unanswerable::Oversize), "{size} bytes");
        }
    }

    #[test]
    fn merged_datagrams_are_answered_even_if_together_they_exceed_the_largest() {
        let mut bytes = vec![b'a'; DATAGRAM_BYTES_MAX + 9];
        let answer = answer(Reply::Upper, 1472, true, &mut bytes);
        assert_eq!(answer, Ok(Answer::Send));
        assert!(bytes.iter().all(|&byte| byte == b'A'));
    }

    #[test]
    fn a_truncated_datagram_is_never_echoed() {
        assert_eq!(
            answer(Reply::Echo, 100, true, &mut [0; 64]),
            Err(Unanswerable::Oversize)
        );
    }

    #[test]
    fn a_peer_without_an_address_is_not_answered_but_discarding_needs_none() {
        assert_eq!(
            answer(Reply::Echo, 1, false, &mut [1]),
            Err(Unanswerable::NoAddress)
        );
        assert_eq!(answer(Reply::Discard, 1, false, &mut [1]), Ok(Answer::Drop));
    }
}

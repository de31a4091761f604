//! One datagram in, one out: same size, never truncated, never merged. Several of one sender are
//! answered together, for what becomes of one becomes of all.
//!
//! Knows the limits of what can be answered. Who may ask at all is `policy`'s business.

use super::{Answer, Reply};

/// The largest payload of a UDP datagram over IPv4 (65,535 − 8 − 20 bytes; RFC 768, RFC 791),
/// and the most that we answer on any datagram socket.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Why a datagram is not answered although its sender is welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// Larger than [`DATAGRAM_BYTES_MAX`]: half an echo is worse than none.
    Oversize,
    /// The sender has no address to answer to (an unbound Unix socket, or port 0).
    NoAddress,
}

/// Datagrams of one sender as they arrived, but for their bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The size that each had on the wire, in bytes, but for the last, which may be shorter; also
    /// when less of it could be stored.
    pub size: usize,
    /// Whether there is somebody to answer to.
    pub has_address: bool,
}

/// Turns datagrams into their answers, in place. An empty datagram is data like any other.
pub fn answer(reply: Reply, arrival: Arrival, bytes: &mut [u8]) -> Result<Answer, Unanswerable> {
    if arrival.size > DATAGRAM_BYTES_MAX || arrival.size > bytes.len() {
        return Err(Unanswerable::Oversize);
    }
    match reply.answer(bytes) {
        Answer::Drop => Ok(Answer::Drop),
        Answer::Send if arrival.has_address => Ok(Answer::Send),
        Answer::Send => Err(Unanswerable::NoAddress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(size: usize) -> Arrival {
        Arrival {
            size,
            has_address: true,
        }
    }

    #[test]
    fn an_empty_datagram_is_answered() {
        assert_eq!(answer(Reply::Echo, arrival(0), &mut []), Ok(Answer::Send));
    }

    #[test]
    fn the_largest_datagram_is_answered_and_a_larger_one_is_not() {
        let mut bytes = vec![7; DATAGRAM_BYTES_MAX + 1];
        let (most, _) = bytes.split_at_mut(DATAGRAM_BYTES_MAX);
        assert_eq!(
            answer(Reply::Echo, arrival(DATAGRAM_BYTES_MAX), most),
            Ok(Answer::Send)
        );
        let too_long = arrival(DATAGRAM_BYTES_MAX + 1);
        assert_eq!(
            answer(Reply::Echo, too_long, &mut bytes),
            Err(Unanswerable::Oversize)
        );
    }

    #[test]
    fn several_that_are_more_than_the_largest_together_are_answered() {
        let mut bytes = vec![b'a'; DATAGRAM_BYTES_MAX + 20];
        let answer = answer(Reply::Upper, arrival(1472), &mut bytes);
        assert_eq!(answer, Ok(Answer::Send));
        assert!(bytes.iter().all(|&byte| byte == b'A'));
    }

    #[test]
    fn a_truncated_datagram_is_never_echoed() {
        assert_eq!(
            answer(Reply::Echo, arrival(100), &mut [0; 64]),
            Err(Unanswerable::Oversize)
        );
    }

    #[test]
    fn a_nameless_sender_gets_no_answer_but_may_be_discarded() {
        let nameless = Arrival {
            size: 1,
            has_address: false,
        };
        assert_eq!(
            answer(Reply::Echo, nameless, &mut [1]),
            Err(Unanswerable::NoAddress)
        );
        assert_eq!(answer(Reply::Discard, nameless, &mut [1]), Ok(Answer::Drop));
    }
}

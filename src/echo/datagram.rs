//! One datagram in, one out: same size, never truncated, never merged.
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

/// A datagram as it arrived, but for its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The size that it had on the wire, in bytes, also when less of it could be stored.
    pub len: usize,
    /// Whether there is somebody to answer to.
    pub has_address: bool,
}

/// Turns a datagram into its answer, in place. An empty datagram is data like any other.
pub fn answer(reply: Reply, arrival: Arrival, bytes: &mut [u8]) -> Result<Answer, Unanswerable> {
    if arrival.len > DATAGRAM_BYTES_MAX || arrival.len > bytes.len() {
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

    fn arrival(len: usize) -> Arrival {
        Arrival {
            len,
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
    fn a_truncated_datagram_is_never_echoed() {
        assert_eq!(
            answer(Reply::Echo, arrival(100), &mut [0; 64]),
            Err(Unanswerable::Oversize)
        );
    }

    #[test]
    fn a_nameless_sender_gets_no_answer_but_may_be_discarded() {
        let nameless = Arrival {
            len: 1,
            has_address: false,
        };
        assert_eq!(
            answer(Reply::Echo, nameless, &mut [1]),
            Err(Unanswerable::NoAddress)
        );
        assert_eq!(answer(Reply::Discard, nameless, &mut [1]), Ok(Answer::Drop));
    }
}

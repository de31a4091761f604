//! What a message says so that its answer is known: whose it is, and which.
//!
//! Knows bytes only. They are digits and capitals, so that a service that answers in capitals
//! answers with the same.

use super::noise::nonce;

/// How many bytes say whose and which.
pub(super) const MARK_BYTES: usize = 16;

/// Of one run of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    run: u32,
    number: u32,
}

impl Mark {
    /// Of this run, which is like no other.
    pub(super) fn new() -> Self {
        Self {
            run: nonce() as u32,
            number: 0,
        }
    }

    /// The next message, of so many bytes.
    pub(super) fn next_message(&mut self, size: usize) -> Vec<u8> {
        self.number = self.number.wrapping_add(1);
        let mark = format!("{:08X}{:08X}", self.run, self.number);
        let filling = (b'0'..=b'9').chain(b'A'..=b'Z').cycle();
        mark.into_bytes()
            .into_iter()
            .chain(filling)
            .take(size)
            .collect()
    }
}

/// Whether this is an answer to that message, whole and true or not.
pub(super) fn is_answer(answer: &[u8], message: &[u8]) -> bool {
    match (answer.get(..MARK_BYTES), message.get(..MARK_BYTES)) {
        (Some(answer), Some(message)) => answer == message,
        _ => answer == message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_beginning() {
        let mut mark = Mark::new();
        let one = mark.next_message(40);
        let other = mark.next_message(40);
        assert_eq!((one.len(), other.len()), (40, 40));
        assert!(is_answer(&one, &one));
        assert!(is_answer(&one[..20], &one), "cut off");
        assert!(!is_answer(&one[..15], &one), "it might be anybody's");
        assert!(!is_answer(&other, &one));
        assert!(
            !is_answer(&Mark::new().next_message(40), &one),
            "of another run"
        );
        assert!(!is_answer(b"", &one));
    }

    #[test]
    fn capitals_change_nothing() {
        let message = Mark::new().next_message(100);
        assert_eq!(message.to_ascii_uppercase(), message);
    }
}

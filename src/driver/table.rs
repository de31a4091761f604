//! What a driver has in its slots, by token: a lookup is one index and one comparison, and a token
//! that no longer exists finds nothing.

use super::Token;

/// Values and the tokens under which they are found. A slot is used again in another generation,
/// and a generation returns after 2^24 uses of its slot.
#[derive(Debug)]
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, value: T) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            u32::try_from(self.slots.len() - 1).expect("descriptors are far fewer than 2^32")
        });
        let entry = &mut self.slots[slot as usize];
        entry.value = Some(value);
        Token {
            slot,
            generation: entry.generation,
        }
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.slot as usize)?;
        if slot.generation == token.generation {
            slot.value.as_ref()
        } else {
            None
        }
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        if slot.generation == token.generation {
            slot.value.as_mut()
        } else {
            None
        }
    }

    /// Ends the token.
    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        self.get(token)?;
        let slot = &mut self.slots[token.slot as usize];
        slot.generation = token.next().generation;
        self.free.push(token.slot);
        slot.value.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_finds_its_value_and_no_later_one() {
        let mut table = Table::new();
        let first = table.insert("first");
        assert_eq!(table.get(first), Some(&"first"));
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&"second"));
    }
}

//! Things that are finished in any order and needed in that of their numbers.

use std::collections::BTreeMap;

/// Puts numbered things in order.
#[derive(Debug)]
pub(super) struct Order<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Order {
            next: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> Order<T> {
    /// An order that begins with this number.
    pub(super) fn starting_at(next: u64) -> Self {
        Order {
            next,
            ..Order::default()
        }
    }

    /// Adds the thing with this number.
    pub(super) fn put(&mut self, number: u64, thing: T) {
        self.waiting.insert(number, thing);
    }

    /// Takes the next thing, if it is there.
    pub(super) fn take_next(&mut self) -> Option<T> {
        let thing = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(thing)
    }

    /// Takes all things that wait.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.waiting).into_values()
    }
}

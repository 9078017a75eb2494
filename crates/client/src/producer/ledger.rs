//! What a flush waits for: the batches opened before it. Pure.

use std::collections::VecDeque;

use crate::SendError;

/// Counts unanswered batches on pages; a flush turns the page and waits for the ones before it.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Number of the first page still kept.
    first: u64,
    /// At least one: the last is the current one.
    pages: VecDeque<Page>,
}

#[derive(Debug, Default)]
struct Page {
    open: u64,
    failure: Option<SendError>,
}

impl Ledger {
    /// Nothing open.
    pub(crate) fn new() -> Self {
        Self {
            first: 0,
            pages: VecDeque::from([Page::default()]),
        }
    }

    /// A batch is opened; gives the page on which it counts.
    pub(crate) fn open(&mut self) -> u64 {
        let current = self.current();
        self.page(current).open += 1;
        current
    }

    /// The batch on page `from` takes in records of one on page `to`, and counts on the earlier of
    /// the two from now on.
    pub(crate) fn pull(&mut self, from: u64, to: u64) -> u64 {
        if to < from {
            self.page(from).open -= 1;
            self.page(to).open += 1;
        }
        from.min(to)
    }

    /// A batch is answered.
    pub(crate) fn close(&mut self, page: u64, failure: Option<&SendError>) {
        let page = self.page(page);
        page.open -= 1;
        if page.failure.is_none() {
            page.failure = failure.cloned();
        }
    }

    /// Turns the page: gives the number of the first page that this flush does not wait for.
    pub(crate) fn turn(&mut self) -> u64 {
        let current = self.current();
        let page = self.page(current);
        if page.open == 0 && page.failure.is_none() {
            return current;
        }
        self.pages.push_back(Page::default());
        current + 1
    }

    /// Once every batch before page `turned` is answered: the first failure among them, unless an
    /// earlier flush has reported it.
    pub(crate) fn finished(&mut self, turned: u64) -> Option<Result<(), SendError>> {
        let before = usize::try_from(turned.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if self.pages.iter().take(before).any(|page| page.open > 0) {
            return None;
        }
        let mut failure = None;
        for page in self.pages.drain(..before) {
            failure = failure.or(page.failure);
            self.first += 1;
        }
        Some(failure.map_or(Ok(()), Err))
    }

    fn current(&self) -> u64 {
        self.first + self.pages.len() as u64 - 1
    }

    fn page(&mut self, page: u64) -> &mut Page {
        page.checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.pages.get_mut(index))
            .expect("BUG: a page is kept while a batch on it is open")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_the_batches_opened_before_it_only() {
        let mut ledger = Ledger::new();
        let a = ledger.open();
        let flush = ledger.turn();
        let b = ledger.open();
        assert_eq!(ledger.finished(flush), None);
        ledger.close(a, None);
        assert_eq!(ledger.finished(flush), Some(Ok(())));
        let second = ledger.turn();
        assert_eq!(ledger.finished(second), None);
        ledger.close(b, Some(&SendError::Closed));
        assert_eq!(ledger.finished(second), Some(Err(SendError::Closed)));
        let third = ledger.turn();
        assert_eq!(
            ledger.finished(third),
            Some(Ok(())),
            "a failure is reported once"
        );
    }

    #[test]
    fn a_batch_that_takes_in_older_records_counts_for_the_older_flush() {
        let mut ledger = Ledger::new();
        let old = ledger.open();
        let flush = ledger.turn();
        let new = ledger.open();
        let pulled = ledger.pull(new, old);
        ledger.close(old, None);
        assert_eq!(ledger.finished(flush), None);
        ledger.close(pulled, None);
        assert_eq!(ledger.finished(flush), Some(Ok(())));
        let late = ledger.open();
        let kept = ledger.open();
        assert_eq!(ledger.pull(kept, late), late);
    }

    #[test]
    fn abandoned_flushes_without_work_leave_nothing_behind() {
        let mut ledger = Ledger::new();
        for _ in 0..1000 {
            ledger.turn();
        }
        assert_eq!(ledger.pages.len(), 1);
        let page = ledger.open();
        let (one, two) = (ledger.turn(), ledger.turn());
        assert_eq!(one, two);
        ledger.close(page, Some(&SendError::Closed));
        assert_eq!(ledger.finished(one), Some(Err(SendError::Closed)));
        assert_eq!(ledger.finished(two), Some(Ok(())));
    }
}

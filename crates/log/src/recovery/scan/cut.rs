//! The last segment's file is shorter than its header says.

use std::io;

use super::super::inventory::{Candidate, cut_through_round};
use super::Walk;
use crate::round::Window;

impl Walk<'_, '_> {
    /// The last segment's file was cut. Where its rounds reach to the cut, those behind it were
    /// acknowledged, for all that is known, and those before it stay where they are.
    pub(super) fn cut_at_the_end(&mut self, candidate: &Candidate) -> io::Result<()> {
        let Some((_, position)) = self.ended_at else {
            return Ok(());
        };
        let mut window = Window::new(&*candidate.file, candidate.file.bytes());
        if !cut_through_round(&mut window, &candidate.header, position)? {
            return Ok(());
        }
        self.vouched = self.vouched.max(self.expected.saturating_sub(1));
        self.emit_all();
        let reason = "what followed in it is gone".to_owned();
        self.restorer
            .lose_rounds(&candidate.name.to_string(), reason);
        self.torn = true;
        Ok(())
    }
}

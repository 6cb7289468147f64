//! What would have been a fault on a real card: counted and told, and the context answers 700 from then on.

use crate::sim::Sim;

/// Messages kept; the count goes on.
const KEPT: usize = 256;

#[derive(Default)]
pub struct Faults {
    pub count: u64,
    messages: Vec<String>,
}

impl Faults {
    pub fn text(&self) -> String {
        self.messages
            .iter()
            .map(|message| format!("{message}\n"))
            .collect()
    }

    pub fn clear(&mut self) {
        *self = Faults::default();
    }
}

impl Sim {
    pub fn fault(&mut self, context: u64, message: String) {
        self.faults.count += 1;
        if self.faults.messages.len() < KEPT {
            self.faults.messages.push(message);
        }
        self.contexts.break_context(context);
    }
}

//! What the node is doing, as far as somebody outside asks.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use flumen_broker::{Broker, Health};

/// The node the console speaks about. Cheap to clone; whoever starts and stops the node moves it on.
#[derive(Debug, Clone, Default)]
pub struct Node {
    phase: Arc<RwLock<Phase>>,
}

#[derive(Debug, Clone, Default)]
enum Phase {
    #[default]
    Starting,
    Serving(Broker),
    Draining(Broker),
}

/// An answer to "are you ready".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    pub(crate) says: Cow<'static, str>,
}

impl Node {
    /// A node that is recovering.
    pub fn starting() -> Self {
        Self::default()
    }

    /// The data directory is open and the listeners accept.
    pub fn serving(&self, broker: Broker) {
        self.move_to(Phase::Serving(broker));
    }

    /// The node refuses new work and finishes what it has.
    pub fn draining(&self) {
        if let Some(broker) = self.broker() {
            self.move_to(Phase::Draining(broker));
        }
    }

    fn move_to(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn phase(&self) -> Phase {
        self.phase
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The broker, once it is open.
    pub(crate) fn broker(&self) -> Option<Broker> {
        match self.phase() {
            Phase::Starting => None,
            Phase::Serving(broker) | Phase::Draining(broker) => Some(broker),
        }
    }

    /// Whether work should be sent here. A degraded node still serves reads, so it stays ready and
    /// says what is wrong.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.phase() {
            Phase::Starting => Readiness {
                ready: false,
                says: Cow::Borrowed("recovering"),
            },
            Phase::Draining(_) => Readiness {
                ready: false,
                says: Cow::Borrowed("draining"),
            },
            Phase::Serving(broker) => match broker.health() {
                Health::Serving => Readiness {
                    ready: true,
                    says: Cow::Borrowed("ready"),
                },
                Health::Degraded(why) => Readiness {
                    ready: true,
                    says: why,
                },
                Health::Failed(why) => Readiness {
                    ready: false,
                    says: why,
                },
                Health::Draining => Readiness {
                    ready: false,
                    says: Cow::Borrowed("draining"),
                },
            },
        }
    }
}

//! What a running node stands on: the clock, and the [`World`] that runs its loops, tasks and jobs and
//! gives it chance. In production that is threads and tokio ([`Threads`]); a simulator brings its own
//! and runs the whole node on one thread, from a seed, in no time.
//!
//! Nothing else in a node starts a thread, spawns a task, sleeps, looks at a clock or draws a random
//! number: what a run does follows from what its world does.

mod clock;
mod ended;
mod lock;
mod sleep;
mod task;
mod threads;
mod timers;
mod world;

pub use clock::{Clock, Now, Remembered};
pub use ended::{Gone, Joined, Running};
pub use lock::{lock, read, write};
pub use sleep::{Elapsed, Sleep};
pub use task::{BoxFuture, Task};
pub use threads::Threads;
pub use world::{SpawnError, Turn, TurnLoop, Wake, World};

//! The running node: lanes, rounds, tails, subscriptions, housekeeping. [`Broker`] is the only
//! handle the edges get. Async and clocks start here.
//!
//! It refuses to know protobuf, JSON and HTTP. Invariants: a log is written by its lane's thread
//! only; a batch is handed over once on its way in, and a session woken once per round on its way
//! out; nothing that may wait for the disk runs on a runtime thread; only `flumen_world` reads a clock, starts threads and spawns tasks.
//!
//! | file | purpose |
//! |---|---|
//! | `broker` | the handle, and nothing but calls |
//! | `open`, `shutdown` | from a data directory to running threads, and back |
//! | `node`, `streams` | what the parts share: lanes, streams, where each shard lies |
//! | `changes`, `reshard`, `hold` | create, update, delete, split, merge; shards that wait meanwhile |
//! | `auto_scale`, `load` | splits and merges by load, and what a shard takes |
//! | `session`, `pending`, `put` | batches on their way in, acks on their way out |
//! | `lane/*`, `round` | the thread that writes a log; whose turn it is |
//! | `tail`, `read`, `subscription` | readable ends, reading, pushing |
//! | `groups/*` | consumer groups: the thread that decides, members' sessions, lag |
//! | `delivery/*` | delivery streams: settings, where they stand, what the sink is told |
//! | `retention`, `housekeeping` | expiring records, looking after files |
//! | `metrics`, `error` | numbers, refusals |
#![forbid(unsafe_code)]

mod auto_scale;
mod broker;
mod changes;
mod clock_watch;
mod config;
mod delivery;
mod describe;
mod error;
mod groups;
mod hold;
mod housekeeping;
mod lane;
mod load;
mod metrics;
mod node;
mod open;
mod pending;
mod place;
mod put;
mod read;
mod reply;
mod reshard;
mod retention;
mod round;
mod session;
mod shutdown;
mod streams;
mod subscription;
mod tail;
mod vouching;

pub use broker::{Broker, OpenError};
pub use clock_watch::clock_doubt;
pub use config::{BrokerConfig, SettingError};
pub use delivery::{
    Backup, BufferingHints, ColumnType, DeliveryBacklog, DeliveryChecks, DeliveryCounters,
    DeliveryCounts, DeliveryDescription, DeliveryDesk, DeliveryEnd, DeliveryOrders, DeliveryPhase,
    DeliveryReport, DeliverySeat, DeliverySettings, DeliverySource, DeliveryStart, Destination,
    HttpTransform, KeySettings, LastError, LastObject, NewDelivery, ObjectCompression,
    ObjectFormat, ObjectSettings, ParquetColumn, ParquetCompression, ParquetSettings, Partitioning,
    Processing, S3Destination, SettingRefused, StoreGuarantee, StreamNameText, SubRecords,
};
pub use error::{Error, ErrorKind};
pub use flumen_log::IoFault;
pub use groups::{
    GroupLag, GroupLags, GroupPosition, GroupReset, GroupState, GroupStatus, JoinGroup, LeaseGuard,
    LeaseStatus, MemberLease, MemberStatus, MemberWord, Membership, SaveCheckpoint,
    SavedCheckpoint, ShardLag,
};
pub use metrics::{HistogramSnapshot, Metrics, MetricsSnapshot};
pub use reply::{
    Health, PutOutcome, PutRecord, ReadBudget, ReadReply, ShardDescription, StreamDescription,
};
pub use session::{Ack, AckReceiver, AppendSender, Appended};
pub use streams::StreamRef;
pub use subscription::{Delivery, Subscription};

// The words of the lower layers that edges speak.
pub use flumen_stream::delivery::DeliveryConfig;
pub use flumen_stream::group::{Checkpoint, Expired, GroupConfig, InitialPosition, LostReason};
pub use flumen_stream::{
    AutoScale, AutoScaleChange, AutoScaleUpdate, NewStream, Reshard, StartPosition, StreamSettings,
    StreamUpdate,
};
pub use flumen_world::Clock;

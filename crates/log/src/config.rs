//! What can be set about a log.

use std::io;
use std::time::Duration;

use flumen_record::Durability;
use serde::{Deserialize, Serialize};

use crate::storage::Storage;

/// Floor of free space: clamp(2 % of the file system, 256 MiB, 5 GiB) unless set.
const FLOOR_MIN: u64 = 256 << 20;
const FLOOR_MAX: u64 = 5 << 30;

/// One log's settings. Production values by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// First segment's size; doubles up to `segment_bytes_max` when one fills before its age.
    pub segment_bytes_min: u64,
    /// Largest segment.
    pub segment_bytes_max: u64,
    /// A segment rolls after this many runs.
    pub segment_runs_max: u32,
    /// Records are kept this long at least; decides a segment's age (an eighth, at most 24 h).
    pub retention_class_hours: u32,
    /// Below this much free space new appends are refused. `None`: clamp(2 % of the file system, 256 MiB, 5 GiB).
    pub free_space_floor_bytes: Option<u64>,
    /// So much is set aside, in files of its own, for what the node itself has to write when the disk
    /// is full to the last byte: at most a quarter of the floor and a 32nd of the file system. 0: nothing.
    pub reserve_bytes: u64,
    /// Of what was written last so much is served as slices of the map …
    pub hot_window_bytes: u64,
    /// … if it was written this recently, or half of it: the page cache forgets what is older.
    pub hot_window_ms: u64,
    /// An idle log writes one empty round after this long, so that the last real one is vouched too
    /// (decision 0005).
    pub idle_vouch_ms: u64,
    /// A larger snapshot is not written, so that the last one stays. At most 256 MiB are read.
    pub snapshot_bytes_max: u64,
    /// A snapshot is due after this many seals …
    pub snapshot_seals: u32,
    /// … or this long after the last one, when there were appends.
    pub snapshot_interval_ms: u64,
    /// Background sync of a `memory` log.
    pub memory_sync_interval_ms: u64,
    /// How often it is looked whether the data directory is still where it was opened. What was
    /// acknowledged this long before it was removed, moved or unmounted may be lost with it; after
    /// that nothing is acknowledged. 0: never.
    pub place_look_ms: u64,
    /// Bound of what a `memory` log keeps un-synced; writes wait for a sync beyond it.
    pub unsynced_bytes_max: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes_min: 32 << 20,
            segment_bytes_max: 256 << 20,
            segment_runs_max: 1 << 18,
            retention_class_hours: 168,
            free_space_floor_bytes: None,
            reserve_bytes: 64 << 20,
            hot_window_bytes: 256 << 20,
            hot_window_ms: 120_000,
            idle_vouch_ms: 250,
            snapshot_bytes_max: 256 << 20,
            snapshot_seals: 16,
            snapshot_interval_ms: 30_000,
            memory_sync_interval_ms: 50,
            place_look_ms: 1_000,
            unsynced_bytes_max: 64 << 20,
        }
    }
}

impl LogConfig {
    /// Below this much free space appends are refused, on a file system of `total_bytes`.
    pub fn floor_bytes(&self, total_bytes: u64) -> u64 {
        self.free_space_floor_bytes
            .unwrap_or_else(|| (total_bytes / 50).clamp(FLOOR_MIN, FLOOR_MAX))
    }

    /// Age at which a segment is rolled: an eighth of the class, at most 24 h.
    pub fn segment_age(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_class_hours) * 3600 / 8)
            .min(Duration::from_secs(24 * 3600))
    }
}

/// Which log of a data directory, and what it promises. Names its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// What an ack from this log promises.
    pub durability: Durability,
    /// Retention class in hours: 1, 6, 24, 168, 720 or 8760. 0: it holds no records of streams, but
    /// what the node itself remembers.
    pub class_hours: u32,
    /// Lanes of one class are numbered from 0.
    pub lane: u32,
}

impl LogKey {
    /// The catalog's own log.
    pub const CATALOG: Self = Self {
        durability: Durability::Disk,
        class_hours: 0,
        lane: 0,
    };

    /// The log of consumer groups.
    pub const GROUPS: Self = Self {
        durability: Durability::Disk,
        class_hours: 0,
        lane: 1,
    };

    /// The log of delivery streams.
    pub const DELIVERIES: Self = Self {
        durability: Durability::Disk,
        class_hours: 0,
        lane: 2,
    };

    /// Whether it holds records of streams, and not what the node itself remembers.
    pub fn holds_records(&self) -> bool {
        self.class_hours > 0
    }

    /// The folder of this log in the data directory.
    pub fn dir_name(&self) -> String {
        if *self == Self::CATALOG {
            return "catalog".to_owned();
        }
        if *self == Self::GROUPS {
            return "groups".to_owned();
        }
        if *self == Self::DELIVERIES {
            return "deliveries".to_owned();
        }
        let durability = match self.durability {
            Durability::Memory => "memory",
            Durability::Disk => "disk",
        };
        format!("log-{durability}-{}h-{}", self.class_hours, self.lane)
    }

    /// Reads a folder's name; `None` when it is not a log's.
    pub fn from_dir_name(name: &str) -> Option<Self> {
        if name == "catalog" {
            return Some(Self::CATALOG);
        }
        if name == "groups" {
            return Some(Self::GROUPS);
        }
        if name == "deliveries" {
            return Some(Self::DELIVERIES);
        }
        let (durability, rest) = name.strip_prefix("log-")?.split_once('-')?;
        let (class, lane) = rest.split_once("h-")?;
        let key = Self {
            durability: match durability {
                "memory" => Durability::Memory,
                "disk" => Durability::Disk,
                _ => return None,
            },
            class_hours: class.parse().ok()?,
            lane: lane.parse().ok()?,
        };
        (key.dir_name() == name).then_some(key)
    }

    /// What stands for this log in segments and rounds: a file that was moved into another log's
    /// folder is not taken for one of its own.
    pub(crate) fn id(&self) -> u64 {
        let durability: u64 = match self.durability {
            Durability::Memory => 1,
            Durability::Disk => 2,
        };
        (durability << 60)
            | (u64::from(self.class_hours) << 28)
            | u64::from(self.lane & 0x0fff_ffff)
    }
}

/// The logs of a data directory, also those that no stream names any more.
pub fn list_logs(storage: &dyn Storage) -> io::Result<Vec<LogKey>> {
    let dirs = storage.list_dirs("")?;
    Ok(dirs
        .iter()
        .filter_map(|name| LogKey::from_dir_name(name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_the_names_of_their_logs() {
        let lane = |durability, class_hours, lane| LogKey {
            durability,
            class_hours,
            lane,
        };
        for (key, name, holds_records) in [
            (LogKey::CATALOG, "catalog", false),
            (LogKey::GROUPS, "groups", false),
            (LogKey::DELIVERIES, "deliveries", false),
            (lane(Durability::Disk, 168, 0), "log-disk-168h-0", true),
            (lane(Durability::Memory, 1, 7), "log-memory-1h-7", true),
        ] {
            assert_eq!(key.dir_name(), name);
            assert_eq!(LogKey::from_dir_name(name), Some(key));
            assert_eq!(key.holds_records(), holds_records);
        }
        // No log has two names, and what is not a log's has none.
        for name in [
            "log-disk-0h-0",
            "log-disk-0h-1",
            "log-disk-0h-2",
            "log-disk-01h-0",
            "Groups",
            "delivery",
            "lost+found",
        ] {
            assert_eq!(LogKey::from_dir_name(name), None, "{name}");
        }
    }
}

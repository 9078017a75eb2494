//! What is wrong, what it means, and what to do about it.

use std::fmt;

use flumen_log::{LogKey, OpenError, Quarantined, ShardRecovery, Shortfall};
use flumen_record::SequenceNumber;
use flumen_stream::CatalogError;

/// Shards named in one line; of more only how many there are.
const SHARDS_SHOWN: usize = 8;

const RESTORE_FILE: &str = "put the file back from a backup while no broker runs, or let readers go \
                            on behind the range (`--skip-gaps`)";
const RESTORE_OR_REPAIR: &str =
    "put the folder back as it was, or let `flumen doctor repair` keep what is intact";

/// One thing that is wrong with a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file or folder, below the data directory.
    pub(crate) file: String,
    /// What is wrong with it.
    pub(crate) problem: String,
    /// What that means.
    pub(crate) meaning: String,
    /// What to do.
    pub(crate) advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            problem,
            meaning,
            advice,
        } = self;
        write!(f, "{file}: {problem}; {meaning}; {advice}")
    }
}

impl Finding {
    fn new(file: String, problem: String, meaning: &str, advice: &str) -> Self {
        Self {
            file,
            problem,
            meaning: meaning.to_owned(),
            advice: advice.to_owned(),
        }
    }

    /// Damage that a log goes on with.
    pub(super) fn of_damage(key: LogKey, damage: &Quarantined) -> Self {
        let file = format!("{}/{}", key.dir_name(), damage.segment);
        let problem = damage.reason.clone();
        if is_of_index(&problem) {
            let meaning = "only what finds records is damaged, the records are there";
            let advice = "nothing to do: the broker gathers it again from them";
            return Self::new(file, problem, meaning, advice);
        }
        if !key.holds_records() {
            let meaning = "the node may not remember all that it acknowledged";
            return Self::new(file, problem, meaning, RESTORE_OR_REPAIR);
        }
        if damage.shards.is_empty() {
            let meaning = "what is damaged of it is answered with DATA_LOSS and its range, the rest \
                           is served";
            return Self::new(file, problem, meaning, RESTORE_FILE);
        }
        let mut meaning = String::new();
        for (shard, from, to) in damage.shards.iter().take(SHARDS_SHOWN) {
            meaning.push_str(&format!("shard {shard}: {from} to {to} are lost, "));
        }
        if let Some(more) = damage.shards.len().checked_sub(SHARDS_SHOWN + 1) {
            meaning.push_str(&format!("and of {} more shards, ", more + 1));
        }
        meaning.push_str("which is answered with DATA_LOSS; the rest is served");
        Self::new(file, problem, &meaning, RESTORE_FILE)
    }

    /// A log that does not open.
    pub(super) fn of_refusal(key: LogKey, error: &OpenError) -> Self {
        let dir = key.dir_name();
        let (file, problem) = match error {
            OpenError::Foreign { path, reason } => (path.clone(), (*reason).to_owned()),
            other => (dir.clone(), other.to_string()),
        };
        if error.is_of_unknown_version() {
            let meaning = "a newer Flumen wrote it, and this one does not start on it";
            return Self::new(file, problem, meaning, "start the newer one");
        }
        let advice = "put the file where it belongs, or back as it was";
        if key == LogKey::CATALOG {
            return Self::new(file, problem, "the broker does not start", advice);
        }
        let meaning = format!("{dir} is answered with LOG_REFUSED, the rest is served");
        Self::new(file, problem, &meaning, advice)
    }

    /// A log that is less than the catalog vouches for.
    pub(super) fn of_shortfall(short: &Shortfall) -> Self {
        let dir = short.log.dir_name();
        let found = short.found.map_or_else(
            || "it is missing or empty".to_owned(),
            |found| format!("it ends at {found}"),
        );
        let problem = format!("{found}, but the catalog vouches for {}", short.vouched);
        let meaning = format!(
            "it is not all that was acknowledged: {dir} is answered with LOG_REFUSED, the rest is served"
        );
        let advice =
            "put the folder back as it was, or accept the loss with `flumen doctor repair`";
        Self::new(dir, problem, &meaning, advice)
    }

    /// A catalog that does not add up.
    pub(super) fn of_catalog(error: &CatalogError) -> Self {
        let advice = match error {
            CatalogError::Behind { .. } => {
                "put back a copy of the folder `catalog` that is as new as the logs: without it \
                 nobody knows which streams their records belong to"
            }
            _ => RESTORE_OR_REPAIR,
        };
        let meaning = "the broker does not start";
        Self::new("catalog".to_owned(), error.to_string(), meaning, advice)
    }

    /// What consumer groups or delivery streams remember does not add up.
    pub(super) fn of_own_log(key: LogKey, error: &dyn fmt::Display) -> Self {
        let dir = key.dir_name();
        let meaning = format!("{dir} are answered with LOG_REFUSED, the rest is served");
        Self::new(dir, error.to_string(), &meaning, RESTORE_OR_REPAIR)
    }

    /// A log that ends below where the catalog says a shard went on elsewhere, or was closed.
    pub(super) fn of_end(key: LogKey, held: &ShardRecovery, end: SequenceNumber) -> Self {
        let (shard, next) = (held.shard, held.next);
        let problem = format!("shard {shard} ends at {next}, by the catalog at {end}");
        let meaning = format!("{next} to {end} are lost, which is answered with DATA_LOSS");
        let advice = "put the folder back as it was, or let readers go on behind the range \
                      (`--skip-gaps`)";
        Self::new(key.dir_name(), problem, &meaning, advice)
    }
}

/// Whether damage is of what finds records, and not of records.
fn is_of_index(problem: &str) -> bool {
    ["footer", "index", "snapshot does not verify"]
        .iter()
        .any(|word| problem.contains(word))
        && !problem.contains("no round at")
}

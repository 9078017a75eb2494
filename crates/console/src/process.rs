//! What the system says about this process.

use std::fs;

/// Memory and descriptors of this process. What cannot be read is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessStats {
    /// Resident memory.
    pub(crate) resident_bytes: Option<u64>,
    /// Resident memory that is not backed by files: what the log's maps do not explain.
    pub(crate) anonymous_bytes: Option<u64>,
    /// Threads.
    pub(crate) threads: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_files: Option<u64>,
}

impl ProcessStats {
    /// Reads them now.
    pub(crate) fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut stats = Self::of_status(&status);
        stats.open_files = fs::read_dir("/proc/self/fd")
            .ok()
            .and_then(|files| u64::try_from(files.count()).ok());
        stats
    }

    fn of_status(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let kibibytes = |name| field(name).map(|kib| kib.saturating_mul(1024));
        Self {
            resident_bytes: kibibytes("VmRSS:"),
            anonymous_bytes: kibibytes("RssAnon:"),
            threads: field("Threads:"),
            open_files: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ProcessStats;

    #[test]
    fn a_status_page_is_understood_and_a_strange_one_is_not_an_error() {
        let status = "Name:\tflumen\nVmRSS:\t   20480 kB\nRssAnon:\t    4096 kB\nThreads:\t7\n";
        let stats = ProcessStats::of_status(status);
        assert_eq!(stats.resident_bytes, Some(20480 * 1024));
        assert_eq!(stats.anonymous_bytes, Some(4096 * 1024));
        assert_eq!(stats.threads, Some(7));
        assert_eq!(
            ProcessStats::of_status("VmRSS: many kB"),
            ProcessStats::default()
        );
    }

    #[test]
    fn this_process_has_memory() {
        let stats = ProcessStats::read();
        assert!(stats.resident_bytes.is_some_and(|bytes| bytes > 0));
        assert!(stats.open_files.is_some_and(|files| files > 0));
    }
}

//! Small file systems that a test makes, fills, breaks and takes away again. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (fs/ext4/ext4.h): what was not synced is gone.
/// In a variable: perl does not hand a constant to an ioctl.
const CUT: &str = "open(my $disk, '<', $ARGV[0]) or die $!; my $flags = pack('I', 2); \
                   ioctl($disk, 0x8004587d, $flags) or die $!;";

/// An ext4 file system on a loop device, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) mounted: PathBuf,
}

impl Disk {
    /// Of `bytes`, its image (sparse) in `folder`. `None`, with the reason printed, where file
    /// systems cannot be made.
    pub(crate) fn new(folder: &Path, bytes: u64) -> Option<Self> {
        let disk = Self {
            image: folder.join("disk.img"),
            mounted: folder.join("disk"),
        };
        std::fs::create_dir(&disk.mounted).unwrap();
        let image = std::fs::File::create(&disk.image).unwrap();
        image.set_len(bytes).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", text(&disk.image)]);
        made.and_then(|()| disk.mount())
            .map_or_else(skipped, |()| Some(disk))
    }

    pub(crate) fn mount(&self) -> Result<(), String> {
        run(
            "mount",
            &["-o", "loop", text(&self.image), text(&self.mounted)],
        )
    }

    /// What was not synced is gone, and nothing can be written any more until it is mounted again.
    pub(crate) fn cut_power(&self) {
        run("perl", &["-e", CUT, text(&self.mounted)]).expect("the shutdown ioctl");
    }

    /// The disk does not answer writes any more, until it is thawed.
    pub(crate) fn freeze(&self) {
        run("fsfreeze", &["-f", text(&self.mounted)]).expect("fsfreeze -f");
    }

    pub(crate) fn thaw(&self) {
        run("fsfreeze", &["-u", text(&self.mounted)]).expect("fsfreeze -u");
    }

    /// Nothing can be written to it any more.
    pub(crate) fn make_read_only(&self) {
        run("mount", &["-o", "remount,ro", text(&self.mounted)]).expect("remount");
    }

    pub(crate) fn unmount(&self) {
        run("umount", &[text(&self.mounted)]).expect("unmount");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may have left it frozen, or unmounted.
        let _ = run("fsfreeze", &["-u", text(&self.mounted)]);
        let _ = run("umount", &["-l", text(&self.mounted)]);
    }
}

/// A memory file system, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) mounted: PathBuf,
}

impl Ram {
    /// Of `bytes`, in `folder`. `None`, with the reason printed, where it cannot be made.
    pub(crate) fn new(folder: &Path, bytes: u64) -> Option<Self> {
        let ram = Self {
            mounted: folder.join("ram"),
        };
        std::fs::create_dir(&ram.mounted).unwrap();
        let size = format!("size={bytes}");
        let words = ["-t", "tmpfs", "-o", &size, "tmpfs", text(&ram.mounted)];
        run("mount", &words).map_or_else(skipped, |()| Some(ram))
    }

    /// Its name leads elsewhere from now on; who has something of it open does not notice.
    pub(crate) fn unmount_lazily(&self) {
        run("umount", &["-l", text(&self.mounted)]).expect("unmount");
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // A file system in it may still be mounted after a failure.
        let _ = run("umount", &["-l", text(&self.mounted)]);
    }
}

/// Only where somebody works without root. The gate has it: a suite that is skipped there proves
/// nothing, so it fails.
fn skipped<T>(why: String) -> Option<T> {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "the gate needs root and loop devices: {why}"
    );
    println!("skipped: it needs root and loop devices: {why}");
    None
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(words)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

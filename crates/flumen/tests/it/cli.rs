//! Running the binary to its end.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// No command of these tests takes longer.
const LONGEST: Duration = Duration::from_secs(120);

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It succeeded; its standard output.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It failed with this code, in one line that says this.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(says), "{says:?} is not in {self:?}");
        let lines = self
            .err
            .lines()
            .filter(|line| line.starts_with("flumen: "))
            .count();
        assert_eq!(lines, 1, "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
    }
}

/// A command that is under way.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    out: JoinHandle<String>,
    err: JoinHandle<String>,
}

/// Starts the binary in `dir` with these words (cut at spaces) and this standard input.
pub(crate) fn start(dir: &Path, words: &str, input: &[u8]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flumen"));
    command.args(words.split_whitespace()).current_dir(dir);
    command
        .env_remove("FLUMEN_ENDPOINT")
        .env_remove("FLUMEN_CONFIG");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_vec();
    // A command that does not read its input closes it: that is not the test's business.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = collect(child.stdout.take().expect("its output"));
    let err = collect(child.stderr.take().expect("its errors"));
    Running { child, out, err }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("its output");
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ran {
        let mut waited = Duration::ZERO;
        let pause = Duration::from_millis(2);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its end") {
                break status;
            }
            if waited > LONGEST {
                // It may end at this very moment.
                drop(self.child.kill());
                panic!("it does not end: {:?}", self.err.join());
            }
            std::thread::sleep(pause);
            waited += pause;
        };
        Ran {
            code: status.code(),
            out: self.out.join().expect("its output"),
            err: self.err.join().expect("its errors"),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is killed");
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Any signal, by its name without SIG.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()
            .expect("kill");
        assert!(status.success(), "kill -{name} {pid}");
    }
}

/// Runs the binary in `dir` to its end.
pub(crate) fn run(dir: &Path, words: &str, input: &[u8]) -> Ran {
    start(dir, words, input).wait()
}

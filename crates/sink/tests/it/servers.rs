//! Real object stores, started for a test and gone with it. The binary's tests use this file too.
//!
//! Programs are looked for in `$FLUMEN_TEST_TOOLS/bin` (unset: `target/tools/bin`) and on the path;
//! `cargo xtask tools` puts them there. Where one is missing, the test says so and passes,
//! unless `CI` is `true`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The only user.
pub(crate) const ACCESS_KEY: &str = "flumen";
/// Its secret.
pub(crate) const SECRET_KEY: &str = "flumen-secret";
/// A bucket that is there.
pub(crate) const BUCKET: &str = "lake";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Real signatures, real files, atomic conditions.
    Versitygw,
    /// AWS-shaped answers; takes any signature, and looks shortly before it writes.
    Moto,
    /// Looks first and then writes.
    S3sFs,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Versitygw => "versitygw",
            Self::Moto => "moto_server",
            Self::S3sFs => "s3s-fs",
        }
    }
}

/// A server that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    child: Child,
    port: u16,
    files: tempfile::TempDir,
    ca_file: Option<PathBuf>,
}

impl Server {
    /// Starts one, with an empty bucket. `None`: its program is not installed.
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        Self::start_with(kind, None).await
    }

    /// Starts versitygw with a certificate of an authority of its own.
    pub(crate) async fn start_with_tls() -> Option<Self> {
        let python = python()?;
        let files = tempfile::tempdir().unwrap();
        make_certificates(&python, files.path());
        Self::start_with(Kind::Versitygw, Some(files)).await
    }

    async fn start_with(kind: Kind, certificates: Option<tempfile::TempDir>) -> Option<Self> {
        let program = find(kind.program())?;
        let files = tempfile::tempdir().unwrap();
        if let Some(certificates) = &certificates {
            std::fs::create_dir(files.path().join("tls")).unwrap();
            for name in ["ca.pem", "cert.pem", "key.pem"] {
                let to = files.path().join("tls").join(name);
                std::fs::copy(certificates.path().join(name), to).unwrap();
            }
        }
        std::fs::create_dir_all(files.path().join("data").join(BUCKET)).unwrap();
        let tls = certificates.is_some();
        let (child, port) = spawn(kind, &program, files.path(), tls);
        let mut server = Self {
            kind,
            child,
            port,
            ca_file: tls.then(|| files.path().join("tls/ca.pem")),
            files,
        };
        server.wait().await;
        Some(server)
    }

    /// Kills it; what it stores on disk stays.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, over the same files.
    pub(crate) async fn start_again(&mut self) {
        let program = find(self.kind.program()).unwrap();
        let mut command = command(self.kind, &program, self.files.path(), self.port, false);
        self.child = command.spawn().unwrap();
        self.wait().await;
    }

    /// `http://…`.
    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.ca_file.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The file that an object of the bucket is, for servers that keep files.
    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.files.path().join("data").join(BUCKET).join(key)
    }

    /// Certificates to trust, where it has one.
    pub(crate) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Until it answers; makes the bucket where that is not a folder.
    async fn wait(&mut self) {
        const TRIES_MAX: u32 = 600;
        let client = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .build()
            .unwrap();
        for _ in 0..TRIES_MAX {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{:?} ended with {status}", self.kind);
            }
            if client.get(self.endpoint()).send().await.is_ok() {
                if self.kind == Kind::Moto {
                    let bucket = format!("{}/{BUCKET}", self.endpoint());
                    let made = client.put(bucket).send().await.unwrap();
                    assert!(made.status().is_success(), "{made:?}");
                }
                return;
            }
            // There is nothing to wait for: a port does not say when it opens.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?} does not answer", self.kind);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(kind: Kind, program: &Path, files: &Path, tls: bool) -> (Child, u16) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let child = command(kind, program, files, port, tls).spawn().unwrap();
    (child, port)
}

fn command(kind: Kind, program: &Path, files: &Path, port: u16, tls: bool) -> Command {
    let data = files.join("data");
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir(files);
    match kind {
        Kind::Versitygw => {
            let address = format!("127.0.0.1:{port}");
            command.args(["--port", &address, "--quiet"]);
            command.args(["--access", ACCESS_KEY, "--secret", SECRET_KEY]);
            if tls {
                command.arg("--cert").arg(files.join("tls/cert.pem"));
                command.arg("--key").arg(files.join("tls/key.pem"));
            }
            command.arg("posix").arg(data);
        }
        Kind::Moto => {
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        }
        Kind::S3sFs => {
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
            command.arg(data);
        }
    }
    command
}

/// The folder that `cargo xtask test` fills.
fn tools() -> PathBuf {
    match std::env::var_os("FLUMEN_TEST_TOOLS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools"),
    }
}

/// A Python that has what tests need.
pub(crate) fn python() -> Option<PathBuf> {
    match std::env::var_os("FLUMEN_TEST_PYTHON") {
        Some(python) => Some(python.into()),
        None => {
            let python = tools().join("venv/bin/python");
            if python.is_file() {
                return Some(python);
            }
            skip("a Python with moto, pyarrow and duckdb");
            None
        }
    }
}

/// A program that a test needs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = [tools().join("bin"), tools().join("venv/bin")];
    let found = ours
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(program);
    }
    found
}

fn skip(missing: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{missing} is missing, and this is CI"
    );
    eprintln!("skipped: {missing} is not installed; `cargo xtask tools` installs it");
}

/// An authority, and a certificate of it for 127.0.0.1.
fn make_certificates(python: &Path, into: &Path) {
    const SCRIPT: &str = r#"
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

def certificate(subject, key, issuer, signer, authority):
    builder = (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True))
    if not authority:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
write = lambda file, content: open(f"{sys.argv[1]}/{file}", "wb").write(content)
write("ca.pem", certificate("authority", authority, "authority", authority, True))
write("cert.pem", certificate("server", server, "authority", authority, False))
write("key.pem", server.private_bytes(serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
"#;
    let made = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(into)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

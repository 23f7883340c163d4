//! A certificate authority of a test's own, and clusters with certificates from it. Uses the program
//! `openssl`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::reaper;

/// Its files are in a directory that goes with the process.
pub struct Authority {
    dir: PathBuf,
}

/// Paths of a certificate and its key, readable by the user that servers run as.
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// `name` must be new in this process.
    pub fn new(name: &str) -> Result<Authority> {
        let dir = reaper::base()?.join(format!("ca-{name}"));
        fs::create_dir(&dir)?;
        reaper::hand_over(&dir)?;
        let authority = Authority { dir };
        authority.issue("root", &format!("/CN=authority {name}"), &["-days", "2"])?;
        Ok(authority)
    }

    /// The certificate by which others are verified.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.crt")
    }

    /// A certificate for a common name, or for `others` where there are any, given as `DNS:name` or
    /// `IP:address`.
    pub fn certify(&self, common_name: &str, others: &[&str]) -> Result<Certificate> {
        let (root, key) = (self.root(), self.dir.join("root.key"));
        let mut arguments = vec!["-days", "2", "-CA", path(&root)?, "-CAkey", path(&key)?];
        let names = format!("subjectAltName={}", others.join(","));
        if !others.is_empty() {
            arguments.extend(["-addext", &names]);
        }
        self.issue(common_name, &format!("/CN={common_name}"), &arguments)
    }

    /// A cluster that also takes encrypted connections, and knows certificates of this authority.
    pub fn cluster(&self, name: &str, own: &Certificate) -> Result<Cluster> {
        let root = self.root();
        let files = [
            ("ssl", "on"),
            ("ssl_cert_file", path(&own.certificate)?),
            ("ssl_key_file", path(&own.key)?),
            ("ssl_ca_file", path(&root)?),
        ];
        Cluster::start_with(name, &[TEST_SETTINGS, &files].concat())
    }

    fn issue(&self, name: &str, subject: &str, arguments: &[&str]) -> Result<Certificate> {
        let file = |ending: &str| self.dir.join(format!("{name}.{ending}"));
        let made = Certificate {
            certificate: file("crt"),
            key: file("key"),
        };
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-subj", subject, "-keyout", path(&made.key)?])
            .args(["-out", path(&made.certificate)?])
            .args(arguments)
            .output()
            .context("could not run \"openssl\"")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "no certificate \"{name}\":\n{said}"
        );
        for (file, mode) in [(&made.certificate, 0o644), (&made.key, 0o600)] {
            fs::set_permissions(file, Permissions::from_mode(mode))?;
            reaper::hand_over(file)?;
        }
        Ok(made)
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

//! `hapax new`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hapax_tests::proc::{Launch, Process, hapax_bin};
use hapax_tests::{TestResult, wait_until};
use sqlx::{Connection as _, SqliteConnection};

use crate::workspace::{Workspace, snapshot};

#[test]
fn a_project_is_made_once() -> TestResult {
    let workspace = Workspace::new()?;
    snapshot!("new", workspace.hapax("new accept-order")?);
    let manifest = std::fs::read_to_string(workspace.path("accept-order/Cargo.toml"))?;
    assert!(manifest.contains("name = \"accept-order\"") && manifest.contains("hapax-guest = \"0."), "{manifest}");
    assert!(workspace.path("accept-order/.gitignore").is_file());
    snapshot!("new_again", workspace.hapax("new accept-order")?);
    snapshot!("new_bad_name", workspace.hapax("new Accept/Order")?);
    // All but its module, which is not built, is as it should be.
    let ran = workspace.hapax("check -c accept-order/hapax.toml")?;
    assert_eq!(ran.out.lines().last(), Some("1 problem"), "{}", ran.snapshot());
    assert!(ran.err.is_empty(), "{}", ran.err);
    Ok(())
}

#[test]
fn the_sdk_can_be_a_checkout() -> TestResult {
    let workspace = Workspace::new()?;
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk/rust").canonicalize()?;
    workspace.hapax(&format!("new here --sdk {}", sdk.display()))?.expect_success()?;
    let manifest = std::fs::read_to_string(workspace.path("here/Cargo.toml"))?;
    assert!(manifest.contains(&format!("hapax-guest = {{ path = \"{}\" }}", sdk.display())), "{manifest}");
    Ok(())
}

/// The project is built in the same place each time, so that only what has changed is compiled.
struct Project {
    folder: PathBuf,
}

impl Project {
    const NAME: &str = "accept-order";

    fn make() -> Result<Self> {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new");
        let folder = home.join(Self::NAME);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(home.join("target"))?;
        let project = Self { folder };
        project.sh_in(&home, &format!("hapax new {} --sdk {}", Self::NAME, sdk()?.display()))?;
        // The versions that the workspace has are on this machine already.
        std::fs::copy(sdk()?.join("../../Cargo.lock"), project.folder.join("Cargo.lock"))?;
        std::os::unix::fs::symlink(home.join("target"), project.folder.join("target"))?;
        Ok(project)
    }

    /// The commands of its README, one a line, without comments.
    fn commands(&self) -> Result<Vec<String>> {
        let readme = std::fs::read_to_string(self.folder.join("README.md"))?;
        let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).context("no commands")?;
        let lines = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end());
        Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
    }

    /// Runs a command as a user would, who has `hapax` on the path, and no network.
    fn sh(&self, line: &str) -> Result<String> {
        self.sh_in(&self.folder, line)
    }

    fn sh_in(&self, folder: &Path, line: &str) -> Result<String> {
        let mut path = hapax_bin()?.parent().context("a folder")?.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(folder).env("PATH", path).env("CARGO_NET_OFFLINE", "true");
        command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).env_remove("CARGO_TARGET_DIR");
        let output = command.output()?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{line}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
        Ok(out)
    }

    async fn host(&self) -> Result<Process> {
        let launch =
            Launch::hapax(["run"]).current_dir(&self.folder).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        let mut host = launch.env("HAPAX_LOG", "info").start()?;
        host.wait_consuming(Duration::from_secs(90)).await?;
        Ok(host)
    }

    async fn orders(&self) -> Result<i64> {
        let file = self.folder.join(format!("{}.db", Self::NAME)).display().to_string();
        let mut connection = SqliteConnection::connect(&file).await?;
        Ok(sqlx::query_scalar("SELECT COUNT(*) FROM orders").fetch_one(&mut connection).await?)
    }
}

fn sdk() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk/rust").canonicalize()?)
}

#[tokio::test]
async fn every_command_of_a_new_projects_readme_works() -> TestResult {
    let project = Project::make()?;
    let commands = project.commands()?;
    let (mut host, mut invoked) = (None, false);
    for line in &commands {
        match line.as_str() {
            // `make guests` has added it; asking for it again asks the network.
            "rustup target add wasm32-wasip2" => {}
            "hapax run" => host = Some(project.host().await?),
            line => {
                let out = project.sh(line)?;
                invoked |= line.starts_with("hapax invoke") && out.contains("handle returned ok");
            }
        }
    }
    assert!(invoked, "no `hapax invoke` in {commands:#?}");
    let mut host = host.with_context(|| format!("no `hapax run` in {commands:#?}"))?;
    wait_until(Duration::from_secs(60), "the order to be there", async || project.orders().await.is_ok_and(|n| n == 1))
        .await?;
    host.terminate(Duration::from_secs(60)).await?;
    // As its README says of messages that no queue takes.
    let outbox = project.sh(&format!("hapax outbox stats {}", Project::NAME))?;
    assert!(outbox.contains("1 message is undeliverable"), "{outbox}");
    Ok(())
}

//! A private RabbitMQ, with its management plugin.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use url::Url;

use super::home::{Home, find_program, free_port};
use super::server::{Kind, Server};
use super::tls::{Tls, TlsAccess};
use crate::admin::Admin;
use crate::proc::{Process, describe};
use crate::vhost::Vhost;
use crate::wait_for;

/// Names the management address of a user's own server; by default port 15672 of the same host.
const MANAGEMENT_VARIABLE: &str = "HAPAX_TEST_AMQP_MANAGEMENT_URL";
/// Longest run of `rabbitmqctl`, which starts an Erlang of its own.
const CTL_LIMIT: Duration = Duration::from_secs(60);

/// A RabbitMQ server, of one node or one of a cluster's nodes; user `guest`, password `guest`.
pub type Rabbit = Server<RabbitKind>;

/// See [`Rabbit`].
pub struct RabbitKind {
    url: Url,
    admin: Admin,
    node: Option<Node>,
}

/// What a private node consists of besides its process.
struct Node {
    /// "hapax20123@localhost".
    name: String,
    distribution_port: u16,
    epmd_port: u16,
    cookie: String,
    tls: Tls,
    /// Erlang's port mapper: our own, since one that the node starts by itself outlives it.
    epmd: Arc<Process>,
}

impl Kind for RabbitKind {
    const NAME: &'static str = "RabbitMQ";
    const PACKAGE: &'static str = "rabbitmq-server";
    const VARIABLE: &'static str = "HAPAX_TEST_AMQP_URL";
    const USER: Option<&'static str> = None;
    const STOP: Signal = Signal::TERM;
    const CRASH: &'static str = "KILL";

    fn prepare(home: &Home) -> Result<Self> {
        program("rabbitmq-server")?;
        let epmd_port = free_port()?;
        let epmd = find_program("epmd", &[])?;
        let mut command = home.command(&epmd);
        command.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let epmd = Arc::new(home.spawn("epmd", command)?);
        Self::prepare_node(home, (epmd_port, epmd), format!("HAPAX{}", super::sql::unique().to_uppercase()))
    }

    fn command(&self, home: &Home) -> Result<Command> {
        let node = self.node.as_ref().context("a user's own server has no node here")?;
        let mut command = home.command(&program("rabbitmq-server")?);
        environment(&mut command, home.path(), node);
        let port = self.url.port().context("the URL lost its port")?;
        command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1").env("RABBITMQ_NODE_PORT", port.to_string());
        // Without it a shell stays in front of the node, and the process started is not the one that serves.
        command.env("RUNNING_UNDER_SYSTEMD", "true").env_remove("NOTIFY_SOCKET");
        Ok(command)
    }

    fn external(url: Url) -> Result<Self> {
        ensure!(matches!(url.scheme(), "amqp" | "amqps"), "the URL must begin with amqp:// or amqps://");
        let management = match std::env::var(MANAGEMENT_VARIABLE) {
            Ok(address) => Url::parse(&address).with_context(|| format!("{MANAGEMENT_VARIABLE} is not a URL"))?,
            Err(_) => {
                let mut address = Url::parse(&format!("http://{}:15672", url.host_str().unwrap_or("localhost")))?;
                let user = if url.username().is_empty() { "guest" } else { url.username() };
                let set = address.set_username(user).and(address.set_password(Some(url.password().unwrap_or("guest"))));
                set.ok().context("the user or the password does not fit into a URL")?;
                address
            }
        };
        Ok(Self { url, admin: Admin::new(management)?, node: None })
    }

    fn url(&self) -> &Url {
        &self.url
    }

    async fn probe(&self, _pid: Option<u32>) -> Result<String> {
        let overview = self.admin.overview().await?;
        if let Some(node) = &self.node {
            let name = overview["node"].as_str().unwrap_or_default();
            ensure!(name == node.name, "the node {name:?} answers where {:?} should", node.name);
            let port = self.url.port().map(u64::from);
            let ready = |listener: &Value| listener["protocol"] == "amqp" && listener["port"].as_u64() == port;
            let listeners = overview["listeners"].as_array();
            ensure!(listeners.into_iter().flatten().any(ready), "it does not listen for AMQP yet");
        }
        let text = |field: &str| overview[field].as_str().unwrap_or("?").to_owned();
        Ok(format!("{} on Erlang {}", text("rabbitmq_version"), text("erlang_version")))
    }
}

impl RabbitKind {
    /// A node that is found by this port mapper, and may join others with the same cookie.
    fn prepare_node(home: &Home, (epmd_port, epmd): (u16, Arc<Process>), cookie: String) -> Result<Self> {
        let (port, management_port) = (free_port()?, free_port()?);
        let tls = Tls::prepare(home)?;
        write_files(home, port, management_port, &tls, &cookie)?;
        let name = format!("hapax{port}@localhost");
        Ok(Self {
            url: Url::parse(&format!("amqp://guest:guest@127.0.0.1:{port}/%2f"))?,
            admin: Admin::new(Url::parse(&format!("http://guest:guest@127.0.0.1:{management_port}"))?)?,
            node: Some(Node { name, distribution_port: free_port()?, epmd_port, cookie, tls, epmd }),
        })
    }
}

impl Rabbit {
    /// Private nodes that form a cluster. They take some 20 s, and live as long as the first one.
    ///
    /// # Errors
    /// When one does not start, or does not join in time.
    pub async fn start_cluster(nodes: usize) -> Result<Vec<Self>> {
        let first = Self::start().await?;
        let node = first.node()?;
        let (mapper, cookie, leader) = ((node.epmd_port, node.epmd.clone()), node.cookie.clone(), node.name.clone());
        let mut cluster = vec![first];
        while cluster.len() < nodes {
            let (mapper, cookie) = (mapper.clone(), cookie.clone());
            let prepare =
                move |home: &Home| Ok((RabbitKind::prepare_node(home, mapper.clone(), cookie.clone())?, None));
            let next = Self::start_as(prepare).await?;
            for args in [&["stop_app"][..], &["reset"], &["join_cluster", &leader], &["start_app"]] {
                next.ctl(args).await?;
            }
            cluster.push(next);
        }
        Ok(cluster)
    }

    /// Its name among the nodes of its cluster.
    ///
    /// # Errors
    /// When it is not a private one.
    pub fn node_name(&self) -> Result<&str> {
        Ok(&self.node()?.name)
    }

    fn node(&self) -> Result<&Node> {
        self.kind.node.as_ref().context("a user's own server has no node here")
    }

    /// Where the management API is; needs user and password `guest` on a private server.
    pub fn management_url(&self) -> &str {
        self.kind.admin.url().as_str()
    }

    /// How to reach it with TLS; none for a user's own server.
    pub fn tls(&self) -> Option<TlsAccess<'_>> {
        self.kind.node.as_ref().map(|node| node.tls.access())
    }

    /// A client of the management API.
    pub fn admin(&self) -> Admin {
        self.kind.admin.clone()
    }

    /// The process id of the node as the node itself gives it.
    ///
    /// # Errors
    /// When the management API does not say so within 20 s.
    pub async fn node_pid(&self) -> Result<u32> {
        // A fresh node has no figures of itself yet.
        wait_for(Duration::from_secs(20), "the node to name its process", async || {
            let nodes = self.kind.admin.get(&["nodes"]).await?;
            let pid = nodes[0]["os_pid"].as_str().context("it does not name its process")?;
            pid.parse().with_context(|| format!("its process id is {pid:?}"))
        })
        .await
    }

    /// A virtual host of one test, with a name of its own that contains `hint`.
    ///
    /// # Errors
    /// When the management API refuses.
    pub async fn vhost(&self, hint: &str) -> Result<Vhost> {
        let name = format!("{hint}-{}", super::sql::unique());
        Vhost::create(&self.kind.url, self.admin(), name, self.is_private()).await
    }

    /// Has the node write what it has in memory of its queues and exchanges to disk, so that SIGKILL cannot take it.
    /// RabbitMQ 3.10, killed right after it had declared a classic queue and confirmed messages in it, came back without
    /// that queue in 7 of 38 tries.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn write_declarations(&self) -> Result<()> {
        // Where queues are not in Mnesia (RabbitMQ 4 keeps them in Khepri) there is nothing to write.
        self.ctl(&["eval", "catch mnesia:sync_log()."]).await.map(drop)
    }

    /// Runs `rabbitmqctl` on a private server, for what the management API lacks
    /// (`["set_vm_memory_high_watermark", "absolute", "1"]` blocks publishers), and returns what it printed. Takes 2 s.
    ///
    /// # Errors
    /// When the server is not a private one, or `rabbitmqctl` fails.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let home = self.home()?;
        let node = self.node()?;
        let mut command = home.command(&program("rabbitmqctl")?);
        environment(&mut command, home.path(), node);
        command.args(["--quiet", "--node", &node.name]).args(args);
        let mut child = tokio::process::Command::from(command);
        let output = child.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(CTL_LIMIT, output).await;
        let output = output.with_context(|| format!("rabbitmqctl still runs after {CTL_LIMIT:?}"))?;
        let output = output.context("running rabbitmqctl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rabbitmqctl {args:?}: {}\n{text}{errors}", describe(output.status));
        Ok(text)
    }
}

/// Debian's programs on the PATH go through `su` to the system's own node; these are the ones they call.
fn program(name: &'static str) -> Result<PathBuf> {
    let folder = PathBuf::from("/usr/lib/rabbitmq/bin");
    find_program(name, &[folder])
}

fn write_files(home: &Home, port: u16, management_port: u16, tls: &Tls, secret: &str) -> Result<()> {
    let write =
        |path: &Path, text: &str| std::fs::write(path, text).with_context(|| format!("writing {}", path.display()));
    let path = home.path();
    let cookie = home.make_folder("home")?.join(".erlang.cookie");
    write(&cookie, secret)?;
    std::fs::set_permissions(&cookie, PermissionsExt::from_mode(0o400)).context("closing the cookie to others")?;
    write(&path.join("env.conf"), "")?;
    write(&path.join("plugins"), "[rabbitmq_management].")?;
    let config = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         listeners.ssl.1 = 127.0.0.1:{}\n\
         ssl_options.cacertfile = {}\n\
         ssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\n\
         ssl_options.verify = verify_none\n\
         loopback_users = none\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {management_port}\n\
         # Queue depths in the management API are this old, in ms.\n\
         collect_statistics_interval = 200\n\
         disk_free_limit.absolute = 10MB\n",
        tls.port,
        tls.authority.display(),
        tls.certificate.display(),
        tls.key.display(),
    );
    write(&path.join("rabbit.conf"), &config)
}

/// Everything that RabbitMQ would otherwise look for in the system's folders.
fn environment(command: &mut Command, path: &Path, node: &Node) {
    let arguments = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none";
    command.env("HOME", path.join("home"));
    command.env("RABBITMQ_NODENAME", &node.name);
    command.env("RABBITMQ_DIST_PORT", node.distribution_port.to_string());
    command.env("ERL_EPMD_PORT", node.epmd_port.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    command.env("RABBITMQ_LOGS", "-").env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments);
    for (variable, file) in [
        ("RABBITMQ_CONF_ENV_FILE", "env.conf"),
        ("RABBITMQ_CONFIG_FILE", "rabbit"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_MNESIA_DIR", "mnesia/node"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_PID_FILE", "pid"),
        ("RABBITMQ_FEATURE_FLAGS_FILE", "feature_flags"),
        ("RABBITMQ_QUORUM_DIR", "quorum"),
        ("RABBITMQ_STREAM_DIR", "stream"),
        ("RABBITMQ_PLUGINS_EXPAND_DIR", "plugins-expanded"),
        ("RABBITMQ_GENERATED_CONFIG_DIR", "config"),
    ] {
        command.env(variable, path.join(file));
    }
}

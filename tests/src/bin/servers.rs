//! `make servers`: private servers until Ctrl-C, and the head of a `hapax.toml` for them.
//!
//! `DATABASE` chooses the ledger: `mariadb` (the default), `postgres` or `both`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hapax_tests::servers::{MariaDb, Postgres, Rabbit, Redis};
use tokio::signal::unix::{SignalKind, signal};

/// The database that every ledger server gets.
const DATABASE: &str = "shop";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let (mariadb, postgres) = match std::env::var("DATABASE").as_deref() {
        Err(_) | Ok("" | "mariadb" | "mysql") => (true, false),
        Ok("postgres") => (false, true),
        Ok("both") => (true, true),
        Ok(other) => bail!("DATABASE={other}: expected mariadb, postgres or both"),
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    println!("Starting private servers; RabbitMQ takes some seconds …");
    let start = async {
        tokio::try_join!(
            Rabbit::start(),
            Redis::start(),
            async { if mariadb { MariaDb::start().await.map(Some) } else { Ok(None) } },
            async { if postgres { Postgres::start().await.map(Some) } else { Ok(None) } },
        )
    };
    let (mut rabbit, mut redis, mut mariadb, mut postgres) = tokio::select! {
        started = start => started?,
        _ = interrupt.recv() => bail!("interrupted while the servers started"),
        _ = terminate.recv() => bail!("terminated while the servers started"),
    };

    let mut databases = Vec::new();
    println!("  {}", rabbit.describe());
    println!("  {}", redis.describe());
    if let Some(server) = &mariadb {
        println!("  {}", server.describe());
        databases.push(server.create_database(DATABASE).await?);
    }
    if let Some(server) = &postgres {
        println!("  {}", server.describe());
        databases.push(server.create_database(DATABASE).await?);
    }
    print_config(&rabbit, &redis, &databases);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }

    println!("\nStopping …");
    // All at once: RabbitMQ alone takes some seconds. What does not stop is killed when it is dropped.
    let stopped = tokio::join!(
        async { if rabbit.is_private() { rabbit.stop().await } else { Ok(()) } },
        async { if redis.is_private() { redis.stop().await } else { Ok(()) } },
        async {
            if let Some(server) = mariadb.as_mut().filter(|s| s.is_private()) { server.stop().await } else { Ok(()) }
        },
        async {
            if let Some(server) = postgres.as_mut().filter(|s| s.is_private()) { server.stop().await } else { Ok(()) }
        },
    );
    for result in [stopped.0, stopped.1, stopped.2, stopped.3] {
        if let Err(error) = result {
            eprintln!("warning: {error:#}");
        }
    }
    println!("Stopped; nothing is left of them.");
    Ok(())
}

/// What to paste, and where to look.
fn print_config(rabbit: &Rabbit, redis: &Redis, databases: &[String]) {
    println!("\nReady. The head of a hapax.toml for them:\n");
    println!("[broker]\nurl = \"{}\"\n", rabbit.url());
    println!("[lock]\nurl = \"{}\"\n", redis.url());
    for (number, url) in databases.iter().enumerate() {
        let comment = if number == 0 { "" } else { "# or: " };
        println!("{comment}{}url = \"{url}\"", if number == 0 { "[database]\n" } else { "" });
    }
    println!("\nRabbitMQ's management page: {} (user and password: guest)", rabbit.management_url());
    println!("They hold nothing but what you put there, and are gone when this ends. Ctrl-C stops them.");
}

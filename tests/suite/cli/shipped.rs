//! The configs and schemas that are given to users work as they stand.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use hapax::config::Config;
use hapax_tests::TestResult;
use hapax_tests::servers::shared;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, SqliteConnection};

/// Goods in `seed.sql`.
const GOODS: i64 = 5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = root().join(path);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Every config that is shipped, by the file that it stands in.
fn configs() -> Result<Vec<(PathBuf, String)>> {
    let example = PathBuf::from("examples/reduce-stock");
    let mut configs = Vec::new();
    for entry in std::fs::read_dir(root().join(&example))? {
        let file = example.join(entry?.file_name());
        if file.extension().is_some_and(|extension| extension == "toml") && !file.ends_with("Cargo.toml") {
            configs.push((file.clone(), read(&file)?));
        }
    }
    let template = "guest-sdk/rust/template/hapax.toml";
    configs.push((template.into(), read(template)?.replace("{{name}}", "accept-order")));
    let readme = read("README.md")?;
    let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    configs.extend(blocks.map(|block| ("README.md".into(), block.to_owned())));
    Ok(configs)
}

#[test]
fn every_config_that_is_shipped_has_neither_error_nor_warning() -> TestResult {
    let configs = configs()?;
    assert_eq!(configs.len(), 5, "three of the example, the template, README.md: {configs:#?}");
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), "secret")?;
    let env = |name: &str| (name == "AMQP_PASSWORD").then(|| "secret".to_owned());
    for (file, text) in configs {
        let text = text.replace("/run/secrets/db", &secret.path().display().to_string());
        let found = match Config::parse_with_env(&text, &file, &env) {
            Ok((_, warnings)) => warnings,
            Err(found) => found,
        };
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{}:\n{}", file.display(), found.join("\n"));
    }
    Ok(())
}

fn schema(database: &str) -> Result<String> {
    Ok(read(format!("examples/reduce-stock/schema/{database}.sql"))? + &read("examples/reduce-stock/schema/seed.sql")?)
}

/// The tables of the example and its goods, on a connection of that kind.
macro_rules! apply {
    ($connection:ty, $url:expr, $schema:literal) => {{
        let mut connection = <$connection>::connect($url).await?;
        sqlx::raw_sql(AssertSqlSafe(schema($schema)?)).execute(&mut connection).await?;
        let goods: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM stock").fetch_one(&mut connection).await?;
        assert_eq!(goods, GOODS);
        let refused: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM refused_order").fetch_one(&mut connection).await?;
        assert_eq!(refused, 0);
        connection.close().await?;
    }};
}

#[tokio::test]
async fn the_examples_tables_can_be_made_on_mariadb() -> TestResult {
    let database = shared().mariadb().await?.fresh_database("shipped").await?;
    apply!(MySqlConnection, database.url(), "mysql");
    Ok(())
}

#[tokio::test]
async fn the_examples_tables_can_be_made_on_postgres() -> TestResult {
    let database = shared().postgres().await?.fresh_database("shipped").await?;
    apply!(PgConnection, database.url(), "postgres");
    Ok(())
}

#[tokio::test]
async fn the_examples_tables_can_be_made_on_sqlite() -> TestResult {
    apply!(SqliteConnection, "sqlite::memory:", "sqlite");
    Ok(())
}

//! What the README says of speed is what the results beside this crate say.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::targets::with_unit;

/// Between these the README quotes targets, each in a row of a table: what, and how much.
const BEGIN: &str = "<!-- quoted from tests/bench/results.json -->";
const END: &str = "<!-- end of quotation -->";

fn read(file: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The rows of the README's table, without its head.
fn quoted(readme: &str) -> Vec<(String, String)> {
    let (_, rest) = readme.split_once(BEGIN).expect("the README quotes results");
    let (table, _) = rest.split_once(END).expect("the quotation ends");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect()
}

/// What the results say of each target, in their order.
fn targets(results: &Json) -> Vec<(String, String)> {
    let targets = results["targets"].as_array().unwrap();
    let cells = targets.iter().map(|target| {
        let figure = target["measured"].as_f64().unwrap_or(f64::NAN);
        (target["what"].as_str().unwrap().to_owned(), with_unit(figure, target["unit"].as_str().unwrap()))
    });
    cells.collect()
}

fn results() -> Json {
    serde_json::from_str(&read("tests/bench/results.json")).unwrap()
}

#[test]
fn the_readme_quotes_the_results_as_they_are() {
    let results = results();
    assert!(results["void"].is_null(), "{}", results["void"]);
    let targets: HashMap<String, String> = targets(&results).into_iter().collect();
    let quoted = quoted(&read("README.md"));
    assert!(!quoted.is_empty());
    for (what, figure) in quoted {
        assert_eq!(targets.get(&what), Some(&figure), "{what}");
    }
}

#[test]
fn the_page_shows_what_the_json_holds() {
    let page = read("tests/bench/RESULTS.md");
    for (what, figure) in targets(&results()) {
        let row = format!("| {what} | {figure} |");
        assert!(page.contains(&row), "RESULTS.md has no row {row}");
    }
}

//! What the README says of speed is what the results beside this crate say.

use std::collections::HashMap;
use std::path::Path;

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

#[test]
fn the_readme_quotes_the_results_as_they_are() {
    let results: serde_json::Value = serde_json::from_str(&read("tests/bench/results.json")).unwrap();
    assert!(results["void"].is_null(), "{}", results["void"]);
    let targets: HashMap<&str, String> = results["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| {
            let figure = target["measured"].as_f64().unwrap_or(f64::NAN);
            (target["what"].as_str().unwrap(), with_unit(figure, target["unit"].as_str().unwrap()))
        })
        .collect();
    let quoted = quoted(&read("README.md"));
    assert!(!quoted.is_empty());
    for (what, figure) in quoted {
        assert_eq!(targets.get(what.as_str()), Some(&figure), "{what}");
    }
}

#[test]
fn the_page_shows_what_the_json_holds() {
    let (json, page) = (read("tests/bench/results.json"), read("tests/bench/RESULTS.md"));
    let results: serde_json::Value = serde_json::from_str(&json).unwrap();
    for target in results["targets"].as_array().unwrap() {
        let figure = with_unit(target["measured"].as_f64().unwrap_or(f64::NAN), target["unit"].as_str().unwrap());
        let row = format!("| {} | {figure} |", target["what"].as_str().unwrap());
        assert!(page.contains(&row), "RESULTS.md has no row {row}");
    }
}

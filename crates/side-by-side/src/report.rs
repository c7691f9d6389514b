//! The result as a page to open in a browser.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::outcome::{Line, Outcome};
use crate::plot;
use crate::table::Table;

const STYLE: &str = "body { font-family: sans-serif; margin: 2em } \
    table { border-collapse: collapse; margin: 2em 0 } \
    th, td { padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: right } \
    th:first-child, td:first-child { text-align: left }";

const NOTE: &str = "Medians; the spread is from the smallest to the largest, as a part of \
    the median. Apart: the daemon has one half of the cores, guests and host applications the \
    other; one core: all share it. Hangs: nothing came through, or the daemon ended. Noisy: \
    samples during which others had more than 15 % of a core in spite of repetitions, and how \
    many were repeated.";

/// Writes the page.
///
/// # Errors
///
/// When the file can't be written.
pub(crate) fn write(path: &Path, outcome: &Outcome, tables: &[Table]) -> Result<()> {
    let plot = plot::svg(outcome)?;
    let tables: String = tables.iter().map(html).collect();
    let title = "vsock devices side by side";
    let (rounds, sample) = (outcome.rounds, outcome.sample.as_millis());
    let summary = summary(outcome);
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n\
         <p>{summary}. {rounds} rounds, {sample} ms a sample. {NOTE}</p>\n{plot}\n{tables}</body></html>\n"
    );
    fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

/// How many targets are met.
pub(crate) fn summary(outcome: &Outcome) -> String {
    let lines = outcome.lines();
    let held: Vec<_> = lines.iter().filter_map(Line::reached).collect();
    let met = held.iter().filter(|&&reached| reached >= 1.0).count();
    format!("{met} of {} targets are met", lines.len())
}

fn html(table: &Table) -> String {
    let row = |(index, cells): (usize, &Vec<String>)| {
        let tag = if index == 0 { "th" } else { "td" };
        let cell = |cell: &String| format!("<{tag}>{}</{tag}>", escape(cell));
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.iter().enumerate().map(row).collect();
    format!("<table>\n{rows}</table>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_do_not_become_tags() {
        let table = vec![vec!["target".into()], vec!["<= 1.5 x limit".into()]];
        let html = html(&table);
        assert!(html.contains("<th>target</th>"), "{html}");
        assert!(html.contains("<td>&lt;= 1.5 x limit</td>"), "{html}");
    }
}

//! The result as a picture: which part of its target each scenario reaches.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::outcome::{Line, Outcome};
use crate::target::Target;

/// Width of the picture, and height of one scenario in it.
const SIZE: (u32, u32) = (1000, 44);
/// Where the bars begin and end.
const BARS: (i32, i32) = (300, 920);
/// Bars are cut off at this multiple of the target.
const MOST: f64 = 3.0;

const OURS: RGBColor = RGBColor(40, 110, 180);
const INCUMBENT: RGBColor = RGBColor(190, 190, 190);
const TARGET: RGBColor = RGBColor(200, 50, 50);

/// The picture as SVG.
///
/// # Errors
///
/// What the drawing library says.
pub(crate) fn svg(outcome: &Outcome) -> Result<String> {
    let mut svg = String::new();
    let lines = outcome.lines();
    let rows = u32::try_from(lines.len())?;
    let height = (rows + 1) * SIZE.1;
    {
        let area = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        let failed = |error| anyhow!("draw the plot: {error}");
        area.fill(&WHITE).map_err(failed)?;
        let mut top = SIZE.1 as i32;
        for line in &lines {
            let label = Text::new(label(line), (BARS.0 - 10, top + 16), right());
            area.draw(&label).map_err(failed)?;
            let bars = [
                (line.reached(), OURS),
                (line.incumbent_reaches(), INCUMBENT),
            ];
            for (index, (reached, colour)) in (0..).zip(bars) {
                let (from, to) = (top + 16 * index, top + 16 * index + 14);
                let reached = reached.unwrap_or(0.0);
                let end = position(reached);
                let bar = Rectangle::new([(BARS.0, from), (end, to)], colour.filled());
                area.draw(&bar).map_err(failed)?;
                let value = Text::new(format!("{reached:.2}"), (end + 4, from + 1), font());
                area.draw(&value).map_err(failed)?;
            }
            top += SIZE.1 as i32;
        }
        let line = [(position(1.0), 24), (position(1.0), height as i32)];
        let line = PathElement::new(line, TARGET.stroke_width(2));
        area.draw(&line).map_err(failed)?;
        let legend = "the target is 1; ours in blue, the incumbent in grey";
        let legend = Text::new(legend, (BARS.0, 6), font());
        area.draw(&legend).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// What a bar is about.
fn label(line: &Line<'_>) -> String {
    let name = &line.row.scenario.name;
    match line.target {
        _ if line.is_first => name.clone(),
        Target::CpuAtMost(_) => format!("{name}: CPU"),
        _ => format!("{name}: Jain"),
    }
}

/// Where a bar of so many targets ends.
fn position(reached: f64) -> i32 {
    let width = f64::from(BARS.1 - BARS.0);
    BARS.0 + (reached.clamp(0.0, MOST) / MOST * width) as i32
}

fn font() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&BLACK)
}

fn right() -> TextStyle<'static> {
    font().pos(Pos::new(HPos::Right, VPos::Center))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_within_the_picture() {
        assert_eq!(position(0.0), BARS.0);
        assert_eq!(position(-1.0), BARS.0);
        assert_eq!(position(MOST), BARS.1);
        assert_eq!(position(1000.0), BARS.1);
    }
}

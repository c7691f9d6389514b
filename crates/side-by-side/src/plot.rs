//! The result as a picture: which part of its target each scenario reaches.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::outcome::{Line, Outcome};
use crate::target::Target;

/// Width of the picture.
const WIDTH: u32 = 1000;
/// Height of the legend, and of one target.
const HEAD: i32 = 40;
const ROW: i32 = 44;
/// Height of a bar, and from one to the next.
const BAR: (i32, i32) = (14, 16);
/// Where the bars begin and end.
const BARS: (i32, i32) = (330, 930);
/// Bars are cut off at this multiple of the target.
const MOST: f64 = 3.0;

const MET: RGBColor = RGBColor(40, 110, 180);
const MISSED: RGBColor = RGBColor(225, 130, 40);
const INCUMBENT: RGBColor = RGBColor(190, 190, 190);
const TARGET: RGBColor = RGBColor(200, 50, 50);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture as SVG.
///
/// # Errors
///
/// What the drawing library says.
pub(crate) fn svg(outcome: &Outcome) -> Result<String> {
    let lines = outcome.lines();
    let height = HEAD + ROW * i32::try_from(lines.len())?;
    let mut svg = String::new();
    {
        let size = (WIDTH, u32::try_from(height)?);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        legend(&area)?;
        let target = [(position(1.0), HEAD - 6), (position(1.0), height)];
        area.draw(&PathElement::new(target, TARGET.stroke_width(2)))?;
        for (line, top) in lines.iter().zip((HEAD..).step_by(ROW as usize)) {
            bars(&area, line, top)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn legend(area: &Area<'_>) -> Result<()> {
    let keys = [
        (0, MET, "ours, target met"),
        (150, MISSED, "ours, missed"),
        (270, INCUMBENT, "incumbent"),
        (370, TARGET, "the target; longer is better"),
    ];
    for (offset, colour, text) in keys {
        let left = BARS.0 + offset;
        let key = Rectangle::new([(left, 12), (left + 12, 24)], colour.filled());
        area.draw(&key)?;
        area.draw(&Text::new(text, (left + 18, 11), font(13)))?;
    }
    Ok(())
}

/// The bars of a target, with what they are about.
fn bars(area: &Area<'_>, line: &Line<'_>, top: i32) -> Result<()> {
    let left = BARS.0 - 10;
    area.draw(&Text::new(label(line), (left, top + 8), right(13)))?;
    let target = line.target.to_string();
    area.draw(&Text::new(target, (left, top + 24), right(11)))?;
    let reached = line.reached();
    let colour = match reached {
        Some(1.0..) => MET,
        _ => MISSED,
    };
    let row = line.row;
    let ours = (reached, row.ours.hangs(), colour);
    let incumbent = (line.incumbent_reaches(), row.incumbent.hangs(), INCUMBENT);
    for (index, (reached, hangs, colour)) in (0..).zip([ours, incumbent]) {
        let from = top + BAR.1 * index;
        let end = position(reached.unwrap_or(0.0));
        let bar = Rectangle::new([(BARS.0, from), (end, from + BAR.0)], colour.filled());
        area.draw(&bar)?;
        let value = match reached {
            Some(reached) if reached.is_finite() => format!("{reached:.2}"),
            Some(_) => "the incumbent hangs".into(),
            None if hangs => "hangs".into(),
            None => continue,
        };
        area.draw(&Text::new(value, (end + 4, from + 1), font(12)))?;
    }
    Ok(())
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

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

fn right(size: i32) -> TextStyle<'static> {
    font(size).pos(Pos::new(HPos::Right, VPos::Center))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_within_the_picture() {
        assert_eq!(position(0.0), BARS.0);
        assert_eq!(position(-1.0), BARS.0);
        assert_eq!(position(MOST), BARS.1);
        assert_eq!(position(f64::INFINITY), BARS.1);
    }
}

//! Charts of points as SVG, one below the other.

use std::fmt::Write;

/// One chart.
pub struct Chart {
    pub title: &'static str,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// What an axis shows.
pub struct Axis {
    name: &'static str,
    is_logarithmic: bool,
}

/// Points of one kind.
pub struct Series {
    /// What the legend calls it.
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Whether a line joins them.
    pub line: bool,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
const COLOURS: [&str; 3] = ["#0b6e4f", "#b4431f", "#1f4fb4"];
const TICKS: u32 = 5;
/// Points of a series that are marked. Of more, there is only the line.
const MARKED: usize = 100;

impl Axis {
    /// Equal steps.
    pub fn even(name: &'static str) -> Axis {
        Axis {
            name,
            is_logarithmic: false,
        }
    }

    /// Equal factors; values not above 0 are omitted.
    pub fn logarithmic(name: &'static str) -> Axis {
        Axis {
            name,
            is_logarithmic: true,
        }
    }

    fn forth(&self, v: f64) -> f64 {
        if self.is_logarithmic { v.log10() } else { v }
    }

    fn back(&self, v: f64) -> f64 {
        if self.is_logarithmic {
            10f64.powf(v)
        } else {
            v
        }
    }

    /// The values from end to end, with a margin.
    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.map(|v| self.forth(v)).filter(|v| v.is_finite()) {
            (low, high) = (low.min(v), high.max(v));
        }
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 };
        if low <= high {
            (low - margin, high + margin)
        } else {
            (0.0, 1.0)
        }
    }
}

/// Draws charts.
pub fn svg(charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (i, chart) in charts.iter().enumerate() {
        let top = HEIGHT * i as f64;
        out.push_str(&format!("<g transform=\"translate(0 {top})\">\n"));
        // Writing to a string can't fail.
        let _ = chart.draw(&mut out);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

impl Chart {
    fn draw(&self, out: &mut String) -> std::fmt::Result {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let (x0, x1) = self.x.range(points().map(|p| p.0));
        let (y0, y1) = self.y.range(points().map(|p| p.1));
        let across = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let down = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        text(out, (WIDTH / 2.0, 24.0), "middle", self.title)?;
        text(out, (WIDTH / 2.0, HEIGHT - 12.0), "middle", self.x.name)?;
        text(out, (LEFT, TOP - 10.0), "middle", self.y.name)?;
        for i in 0..=TICKS {
            let part = f64::from(i) / f64::from(TICKS);
            let (x, y) = (x0 + (x1 - x0) * part, y0 + (y1 - y0) * part);
            let at = (across(x), HEIGHT - BOTTOM + 18.0);
            text(out, at, "middle", &number(self.x.back(x)))?;
            let at = (LEFT - 8.0, down(y) + 4.0);
            text(out, at, "end", &number(self.y.back(y)))?;
            writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>",
                WIDTH - RIGHT,
                y = down(y)
            )?;
        }
        for (i, s) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let mut points: Vec<(f64, f64)> = s
                .points
                .iter()
                .map(|p| (self.x.forth(p.0), self.y.forth(p.1)))
                .filter(|p| p.0.is_finite() && p.1.is_finite())
                .map(|p| (across(p.0), down(p.1)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if s.line {
                let path: Vec<String> = points
                    .iter()
                    .map(|(x, y)| format!("{x:.1},{y:.1}"))
                    .collect();
                writeln!(
                    out,
                    "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                    path.join(" ")
                )?;
            }
            let row = TOP + 6.0 + 18.0 * i as f64;
            text(out, (WIDTH - RIGHT - 16.0, row), "end", s.name)?;
            if points.len() > MARKED {
                points.clear();
            }
            points.push((WIDTH - RIGHT - 6.0, row - 4.0));
            for (x, y) in points {
                writeln!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
                )?;
            }
        }
        Ok(())
    }
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) -> std::fmt::Result {
    writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    )
}

/// Three digits.
fn number(v: f64) -> String {
    if v == 0.0 {
        return "0".into();
    }
    let digits = (2.0 - v.abs().log10().floor()).max(0.0) as usize;
    format!("{v:.digits$}")
}

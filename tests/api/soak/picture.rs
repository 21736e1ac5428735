//! Curves over time, as an SVG. Readable on light and on dark pages.

use std::fmt::Write as _;

pub struct Curve {
    pub name: &'static str,
    /// Minutes, and the value; where that is no number, the curve is interrupted.
    pub points: Vec<(f64, f64)>,
}

/// Curves that share an axis, which begins at 0; at most as many as there are colours.
pub struct Panel {
    pub title: &'static str,
    pub curves: Vec<Curve>,
}

const LEFT: f64 = 60.0;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 110.0;
const DISTANCE: f64 = 160.0;
/// On light, on dark.
const COLOURS: [(&str, &str); 3] = [("#8c959f", "#6e7681"), ("#0969da", "#58a6ff"), ("#cf222e", "#ff7b72")];

/// One panel below the other.
pub fn svg(panels: &[Panel]) -> String {
    let all = panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let minutes = all.map(|point| point.0).fold(0.0, f64::max);
    let mut parts = String::new();
    for (panel, number) in panels.iter().zip(0_u8..) {
        draw(&mut parts, panel, 30.0 + f64::from(number) * DISTANCE, minutes);
    }
    let class = |dark: bool| {
        let colours = COLOURS.iter().enumerate();
        colours
            .map(|(at, (light, on_dark))| {
                let colour = if dark { on_dark } else { light };
                format!(".c{at}{{stroke:{colour}}}.t{at}{{fill:{colour}}}")
            })
            .collect::<String>()
    };
    let height = 20.0 + DISTANCE * f64::from(u8::try_from(panels.len()).expect("a few"));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 820 {height}\" role=\"img\" aria-label=\"Memory, latency and errors over the time\">\
        <style>text{{font:12px system-ui,sans-serif;fill:#24292f}}.y{{text-anchor:end;font-size:10px}}.x{{text-anchor:middle;font-size:10px}}\
        line{{stroke:#57606a;stroke-width:.5}}polyline{{fill:none;stroke-width:1.2}}{}\
        @media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}line{{stroke:#9198a1}}{}}}</style>{parts}</svg>\n",
        class(false),
        class(true)
    )
}

fn draw(parts: &mut String, panel: &Panel, top: f64, minutes: f64) {
    let values = panel.curves.iter().flat_map(|curve| &curve.points).map(|point| point.1);
    let most = round_up(values.filter(|value| value.is_finite()).fold(0.0, f64::max));
    let bottom = top + HEIGHT;
    let mut put = |text: String| parts.push_str(&text);
    put(format!("<text x=\"{LEFT}\" y=\"{}\">{}</text>", top - 8.0, panel.title));
    // The last one, drawn over the others, has the last colour.
    let coloured = || panel.curves.iter().zip(COLOURS.len() - panel.curves.len()..);
    for ((curve, at), place) in coloured().zip(0_u8..) {
        let x = 240.0 + f64::from(place) * 180.0;
        put(format!("<text class=\"t{at}\" x=\"{x}\" y=\"{}\">{}</text>", top - 8.0, curve.name));
    }
    for part in [0.0, 0.5, 1.0] {
        let y = bottom - part * HEIGHT;
        put(format!("<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/>", LEFT + WIDTH));
        put(format!("<text class=\"y\" x=\"{}\" y=\"{}\">{}</text>", LEFT - 5.0, y + 4.0, most * part));
    }
    for part in 0..=6 {
        let part = f64::from(part) / 6.0;
        put(format!(
            "<text class=\"x\" x=\"{}\" y=\"{}\">{:.1} min</text>",
            LEFT + part * WIDTH,
            bottom + 14.0,
            part * minutes
        ));
    }
    for (curve, at) in coloured() {
        for piece in curve.points.split(|point| !point.1.is_finite()).filter(|piece| !piece.is_empty()) {
            let mut points = String::new();
            for (minute, value) in piece {
                let (x, y) = (LEFT + minute / minutes * WIDTH, bottom - value / most * HEIGHT);
                write!(points, "{x:.1},{y:.1} ").expect("a String takes everything");
            }
            put(format!("<polyline class=\"c{at}\" points=\"{}\"/>", points.trim_end()));
        }
    }
}

/// 1, 2 or 5 times a power of ten; of nothing, 1.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|mark| *mark >= value).unwrap_or(value)
}

//! Lists in pages: by number with totals, or by the last id seen.

use serde_json::Value;

use super::{Call, Outcome};
use crate::http::response::Response;

/// `page` and `per_page`, with GitLab's seven fields.
pub fn by_number<T>(call: &Call, items: &[T], to_json: impl Fn(&T) -> Value) -> Outcome {
    let (page, per_page) = (call.params.number("page").unwrap_or(1).max(1), per_page(call));
    let total = items.len() as u64;
    let pages = total.div_ceil(per_page).max(1);
    let start = (page - 1).saturating_mul(per_page).min(total) as usize;
    let body: Vec<Value> = items[start..].iter().take(per_page as usize).map(to_json).collect();

    let (previous, next) = ((page > 1 && page <= pages + 1).then(|| page - 1), (page < pages).then(|| page + 1));
    let links = [(previous, "prev"), (next, "next"), (Some(1), "first"), (Some(pages), "last")];
    let links: Vec<String> = links
        .into_iter()
        .filter_map(|(page, rel)| Some(link(call, rel, &[("page", page?), ("per_page", per_page)])))
        .collect();
    let text = |page: Option<u64>| page.map(|page| page.to_string()).unwrap_or_default();
    Ok(Response::json(200, &body.into())
        .header("Link", links.join(", "))
        .header("X-Next-Page", text(next))
        .header("X-Page", page.to_string())
        .header("X-Per-Page", per_page.to_string())
        .header("X-Prev-Page", text(previous))
        .header("X-Total", total.to_string())
        .header("X-Total-Pages", pages.to_string()))
}

/// `pagination=keyset`: items already begin after the last id seen; one link leads on, and no total is known.
pub fn by_id<T>(
    call: &Call,
    items: &[T],
    parameter: &str,
    id: impl Fn(&T) -> u64,
    to_json: impl Fn(&T) -> Value,
) -> Outcome {
    let per_page = per_page(call) as usize;
    let page = &items[..items.len().min(per_page)];
    let body: Vec<Value> = page.iter().map(to_json).collect();
    let response = Response::json(200, &body.into());
    Ok(match page.last() {
        Some(last) if items.len() > per_page => response.header("Link", link(call, "next", &[(parameter, id(last))])),
        _ => response,
    })
}

fn per_page(call: &Call) -> u64 {
    call.params.number("per_page").unwrap_or(20).clamp(1, 100)
}

/// An absolute address that repeats every parameter of the request, sorted as Rails' `to_query` does.
fn link(call: &Call, rel: &str, changed: &[(&str, u64)]) -> String {
    let mut pairs: Vec<(String, String)> = form_urlencoded::parse(call.request.query().as_bytes())
        .into_owned()
        .filter(|(name, _)| changed.iter().all(|(other, _)| name != other))
        .chain(changed.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())))
        .collect();
    pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    format!("<{}{}?{query}>; rel=\"{rel}\"", call.hub.url, call.request.path())
}

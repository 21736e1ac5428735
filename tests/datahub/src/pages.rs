//! The few HTML pages people see.

use crate::hub::Hub;
use crate::world::{User, initial};

/// Who signs in? The form goes back to the same address, so that its parameters come along.
pub fn sign_in(hub: &Hub, target: &str, scopes: &str, users: &[User]) -> String {
    let buttons: String = users
        .iter()
        .map(|User { username, name, .. }| {
            format!(
                r#"<button id="sign-in-{username}" name="user" value="{username}">
<span class="face" aria-hidden="true">{}</span><span>{}<small>@{username}</small></span></button>
"#,
                escape(&initial(name)),
                escape(name),
            )
        })
        .collect();
    page(
        hub,
        "Sign in",
        &format!(
            r#"<h1>Sign in to {}</h1>
<p>This is a test DataHUB. It asks for no password: choose who you are.</p>
<form method="post" action="{}">
{buttons}<p>The application you come from may then use: <b>{}</b>.</p>
<button id="deny" class="quiet" name="deny" value="true">Deny</button>
</form>"#,
            escape(&hub.name),
            escape(target),
            escape(scopes),
        ),
    )
}

/// The sign-in cannot go on, and nobody may be sent anywhere.
pub fn refused(hub: &Hub, why: &str) -> String {
    page(hub, "An error has occurred", &format!("<h1>An error has occurred</h1>\n<p>{}</p>", escape(why)))
}

pub fn status(hub: &Hub) -> String {
    let main = format!(
        "<h1>{}</h1>\n<p>A test DataHUB: it answers as GitLab does, at <code>{}</code>. It is up.</p>",
        escape(&hub.name),
        escape(&hub.url),
    );
    page(hub, "Up", &main)
}

pub fn upgrade(hub: &Hub) -> String {
    page(hub, "Deploy in progress", "<h1>Deploy in progress</h1>\n<p>Please try again in a few minutes.</p>")
}

pub fn failed(hub: &Hub) -> String {
    page(hub, "Something went wrong", "<h1>500: We're sorry. Something went wrong on our end.</h1>")
}

pub fn not_found(hub: &Hub) -> String {
    page(hub, "Not Found", "<h1>404: Page not found</h1>\n<p>Make sure the address is correct.</p>")
}

fn page(hub: &Hub, title: &str, main: &str) -> String {
    include_str!("page.html")
        .replace("{{title}}", &format!("{title} · {}", escape(&hub.name)))
        .replace("{{main}}", main)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

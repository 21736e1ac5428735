//! Signing in, refreshing and revoking, as GitLab does them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use datahub::behaviour::{RefreshMode, SigningKey};
use datahub::{DataHub, Options};
use rsa::pkcs1v15::{Signature, VerifyingKey};
use rsa::signature::Verifier;
use rsa::{BigUint, RsaPublicKey};
use serde_json::Value;
use sha2::Sha256;

use crate::client::{
    REDIRECT_URI, VERIFIER, authorize_target, bearer, code, exchange, form, get, hub, refresh, send, sign_in, text,
    token,
};

#[test]
fn one_post_signs_in_and_brings_code_and_state_back() {
    let hub = hub();
    let answer = send(&hub, "POST", &format!("{}&user=testuser", authorize_target(&hub)), "", "");
    assert_eq!(answer.status, 302);
    assert!(answer.header("location").is_some_and(|to| to.starts_with(&format!("{REDIRECT_URI}&"))));
    assert_eq!(answer.location_param("state").as_deref(), Some("the-state"));
    assert_eq!(answer.location_param("code").map(|code| code.len()), Some(64));
}

#[test]
fn the_sign_in_page_names_the_datahub_and_offers_both_users() {
    let hub = DataHub::start(Options { name: "DataHUB <Tübingen>".into(), ..Options::default() }).expect("a free port");
    let page = get(&hub, &authorize_target(&hub), "").text();
    for part in [
        "DataHUB &lt;Tübingen&gt;",
        "id=\"sign-in-testuser\"",
        "id=\"sign-in-joerg\"",
        "Jörg 100% Müller",
        "id=\"deny\"",
    ] {
        assert!(page.contains(part), "{part} is missing in {page}");
    }
}

#[test]
fn denying_redirects_with_access_denied_and_the_state() {
    let hub = hub();
    let answer = form(&hub, &authorize_target(&hub), "", "deny=true");
    assert_eq!(answer.location_param("error").as_deref(), Some("access_denied"));
    assert_eq!(answer.location_param("state").as_deref(), Some("the-state"));
}

#[test]
fn nobody_is_redirected_for_a_foreign_client_or_to_a_foreign_address() {
    let hub = hub();
    let foreign_client = authorize_target(&hub).replace(hub.client_id(), "somebody");
    let foreign_address = authorize_target(&hub).replace("127.0.0.1", "evil.example");
    for (target, status) in [(foreign_client, 401), (foreign_address, 400)] {
        let answer = get(&hub, &target, "");
        assert_eq!((answer.status, answer.header("location")), (status, None));
    }
}

#[test]
fn an_unknown_scope_is_redirected_back_as_invalid() {
    let hub = hub();
    let answer = get(&hub, &authorize_target(&hub).replace("+api", "+everything"), "");
    assert_eq!(answer.location_param("error").as_deref(), Some("invalid_scope"));
}

#[test]
fn an_id_token_verifies_with_the_published_key_and_carries_the_nonce() {
    let hub = hub();
    let claims = verified(&hub, &text(&sign_in(&hub, "testuser"), "id_token"));
    assert_eq!(claims["iss"], hub.url());
    assert_eq!(claims["sub"], "7");
    assert_eq!(claims["aud"], hub.client_id());
    assert_eq!(claims["nonce"], "the-nonce");
    assert_eq!(claims["exp"].as_u64(), claims["iat"].as_u64().map(|iat| iat + 120));
    assert!(claims.get("name").is_none());
}

#[test]
fn after_a_rotation_the_other_key_is_published_and_signs() {
    let hub = hub();
    let before = get(&hub, "/oauth/discovery/keys", "").json();
    hub.set(|behaviour| behaviour.signing_key = SigningKey::Second);
    let after = get(&hub, "/oauth/discovery/keys", "").json();
    assert_ne!(before["keys"][0]["kid"], after["keys"][0]["kid"]);
    verified(&hub, &text(&sign_in(&hub, "joerg"), "id_token"));
}

#[test]
fn a_code_is_good_once_with_its_verifier_and_its_redirect_uri() {
    let hub = hub();
    let code = code(&hub, "testuser");
    assert_eq!(exchange(&hub, &code, "another", REDIRECT_URI).json()["error"], "invalid_grant");
    assert_eq!(exchange(&hub, &code, VERIFIER, "http://127.0.0.1:9/").json()["error"], "invalid_grant");
    assert_eq!(exchange(&hub, &code, VERIFIER, REDIRECT_URI).status, 200);
    assert_eq!(exchange(&hub, &code, VERIFIER, REDIRECT_URI).status, 400);
    let counts = hub.counts();
    assert_eq!((counts.code_exchanges, counts.code_exchanges_refused), (1, 3));
}

#[test]
fn the_client_authenticates_by_basic_or_by_parameters() {
    let hub = hub();
    let known = text(&sign_in(&hub, "testuser"), "refresh_token");
    let basic = |secret: &str, token: &str| {
        let pair = STANDARD.encode(format!("{}:{secret}", hub.client_id()));
        let authorization = format!("Authorization: Basic {pair}\r\n");
        form(&hub, "/oauth/token", &authorization, &format!("grant_type=refresh_token&refresh_token={token}"))
    };
    assert_eq!(basic("wrong", &known).status, 401);
    assert_eq!(basic("wrong", &known).json()["error"], "invalid_client");
    assert_eq!(basic(hub.client_secret(), "x").json()["error"], "invalid_grant");
    assert_eq!(refresh(&hub, "x").json()["error"], "invalid_grant");
    // Whose a token is is looked at after whether there is one.
    assert_eq!(basic("wrong", "x").json()["error"], "invalid_grant");
    assert_eq!(basic(hub.client_secret(), &known).status, 200);
}

#[test]
fn a_refresh_kills_the_old_pair_at_once_as_gitlab_does() {
    let hub = hub();
    let old = sign_in(&hub, "testuser");
    let new = refresh(&hub, &text(&old, "refresh_token")).json();
    assert!(verified(&hub, &text(&new, "id_token")).get("nonce").is_none());
    let answer = get(&hub, "/api/v4/user", &bearer(&text(&old, "access_token")));
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains("Token was revoked. You have to re-authorize from the user."));
    assert_eq!(refresh(&hub, &text(&old, "refresh_token")).json()["error"], "invalid_grant");
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&text(&new, "access_token"))).status, 200);
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 1));
}

#[test]
fn revoke_on_use_keeps_the_old_pair_until_the_new_one_is_used() {
    let hub = hub();
    hub.set(|behaviour| behaviour.refresh = RefreshMode::RevokeOnUse);
    let old = sign_in(&hub, "testuser");
    refresh(&hub, &text(&old, "refresh_token"));
    let new = refresh(&hub, &text(&old, "refresh_token")).json();
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&text(&old, "access_token"))).status, 200);
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&text(&new, "access_token"))).status, 200);
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&text(&old, "access_token"))).status, 401);
    assert_eq!(refresh(&hub, &text(&old, "refresh_token")).status, 400);
}

#[test]
fn of_many_refreshes_at_the_same_time_one_wins() {
    let hub = hub();
    let old = text(&sign_in(&hub, "testuser"), "refresh_token");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| refresh(&hub, &old));
        }
    });
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 7));
}

#[test]
fn each_kind_of_bad_token_gets_its_own_401() {
    let hub = hub();
    let unknown = get(&hub, "/api/v4/user", &bearer("unknown"));
    assert_eq!((unknown.status, unknown.text().as_str()), (401, r#"{"message":"401 Unauthorized"}"#));
    let token = token(&hub, "testuser");
    hub.expire_access_tokens();
    let expired = get(&hub, "/api/v4/user", &bearer(&token));
    assert!(expired.text().contains("Token is expired. You can either do re-authorization or token refresh."));
    assert!(expired.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer realm=\"The API\"")));
}

#[test]
fn revoking_an_expired_access_token_does_nothing_but_its_refresh_token_can_be_revoked() {
    let hub = hub();
    let tokens = sign_in(&hub, "testuser");
    hub.expire_access_tokens();
    let revoke = |token: &str, hint: &str| {
        let (id, secret) = (hub.client_id(), hub.client_secret());
        let body = format!("client_id={id}&client_secret={secret}&token={token}&token_type_hint={hint}");
        form(&hub, "/oauth/revoke", "", &body)
    };
    assert_eq!(revoke(&text(&tokens, "access_token"), "access_token").text(), "{}");
    assert_eq!((hub.counts().revocations, hub.counts().revocations_without_effect), (0, 1));
    assert_eq!(revoke(&text(&tokens, "refresh_token"), "refresh_token").status, 200);
    assert_eq!(hub.counts().revocations, 1);
    assert_eq!(refresh(&hub, &text(&tokens, "refresh_token")).status, 400);
}

#[test]
fn only_the_client_may_revoke() {
    let hub = hub();
    let token = token(&hub, "testuser");
    assert_eq!(form(&hub, "/oauth/revoke", "", &format!("token={token}")).status, 403);
    assert_eq!(form(&hub, "/oauth/revoke", "", "token=unknown").status, 200);
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&token)).status, 200);
}

#[test]
fn userinfo_tells_the_name() {
    let hub = hub();
    let claims = get(&hub, "/oauth/userinfo", &bearer(&token(&hub, "joerg"))).json();
    assert_eq!((&claims["sub"], &claims["name"]), (&"8".into(), &"Jörg 100% Müller".into()));
    let refused = get(&hub, "/oauth/userinfo", &bearer("unknown"));
    assert_eq!((refused.status, refused.body.len()), (401, 0));
}

#[test]
fn secrets_list_all_that_must_not_leak() {
    let hub = hub();
    let tokens = sign_in(&hub, "testuser");
    let secrets = hub.secrets();
    for name in ["access_token", "refresh_token", "id_token"] {
        assert!(secrets.contains(&text(&tokens, name)), "{name}");
    }
    for secret in ["the-state", "the-nonce", VERIFIER, hub.client_secret()] {
        assert!(secrets.iter().any(|known| known == secret), "{secret}");
    }
}

/// The claims, if the one published key signed them.
fn verified(hub: &DataHub, id_token: &str) -> Value {
    let key = &get(hub, "/oauth/discovery/keys", "").json()["keys"][0];
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
    let number = |name| BigUint::from_bytes_be(&decode(&text(key, name)));
    let public = RsaPublicKey::new(number("n"), number("e")).expect("an RSA key");
    let (signed, signature) = id_token.rsplit_once('.').expect("a signature");
    let (header, claims) = signed.split_once('.').expect("a header");
    let header: Value = serde_json::from_slice(&decode(header)).expect("JSON");
    assert_eq!((&header["alg"], &header["kid"]), (&"RS256".into(), &key["kid"]));
    let signature = Signature::try_from(decode(signature).as_slice()).expect("a signature's length");
    VerifyingKey::<Sha256>::new(public).verify(signed.as_bytes(), &signature).expect("signed with the published key");
    serde_json::from_slice(&decode(claims)).expect("JSON")
}

//! nginx in front of gateways.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::gateway::Folder;

/// A real nginx.
pub struct Nginx {
    child: Child,
    pub address: String,
    log: PathBuf,
}

impl Nginx {
    /// Gives each request to the next of these gateways, each such as `127.0.0.1:8000` or `unix:/path`. `more` are further lines
    /// of its server.
    pub fn start(folder: &Folder, gateways: &[String], more: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let place = folder.path().display();
        let servers: String = gateways.iter().map(|gateway| format!("server {gateway};\n")).collect();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {place}/{kind};\n"))
            .concat();
        let config = format!(
            "user root; daemon off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/nginx.log;\n\
            events {{ worker_connections 4096; }}\n\
            http {{ access_log off; {temporary} keepalive_requests 100000; client_max_body_size 0;\n\
            upstream gateways {{ {servers} keepalive 64; }}\n\
            server {{ listen {free}; location / {{ proxy_pass http://gateways; proxy_http_version 1.1;\n\
            proxy_set_header Connection \"\"; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;\n\
            proxy_request_buffering off; proxy_buffering off; proxy_next_upstream error; proxy_read_timeout 120s; }}\n\
            {more} }} }}"
        );
        let file = folder.file("nginx.conf", &config);
        let log = folder.path().join("nginx.log");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-e").arg(&log).stdin(Stdio::null());
        let child = command.spawn().expect("nginx is installed: make deploy-tools");
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(free).is_err() {
            assert!(Instant::now() < until, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address: free.to_string(), log }
    }

    /// What it says of connections to gateways that broke off.
    pub fn complaints(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .filter(|line| line.contains("while reading response header from upstream"))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        crate::gateway::signal("TERM", self.child.id());
        let _ = self.child.wait();
    }
}

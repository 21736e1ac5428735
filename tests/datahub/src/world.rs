//! The users and projects of one DataHUB.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::repository::Repository;

pub struct World {
    pub users: Vec<User>,
    pub projects: Vec<Project>,
    /// Generic packages by project and path: what was put there, without its bytes.
    pub packages: BTreeMap<(u64, String), StoredFile>,
}

#[derive(Clone)]
pub struct User {
    pub id: u64,
    pub username: String,
    pub name: String,
    /// Whether the sign-in page offers it.
    pub signs_in: bool,
}

pub struct Project {
    pub id: u64,
    pub path_with_namespace: String,
    pub name: String,
    pub description: String,
    pub public: bool,
    /// Access level by user: 10 guest, 20 reporter, 30 developer, 40 maintainer, 50 owner.
    pub members: BTreeMap<u64, u64>,
    pub repository: Repository,
    pub created: SystemTime,
}

pub struct StoredFile {
    pub size: u64,
    pub sha256: String,
}

impl World {
    /// By number or by full path, as GitLab's `:id`; only what this user may see.
    pub fn project(&mut self, id: &str, user: Option<&User>) -> Option<&mut Project> {
        let number = id.parse().ok();
        self.projects
            .iter_mut()
            .find(|project| number == Some(project.id) || project.path_with_namespace == id)
            .filter(|project| project.is_visible_to(user))
    }

    pub fn user(&self, id: u64) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    /// `person1`, `person2` and so on, who write to every project.
    pub fn add_people(&mut self, count: u64) {
        let people = (1..=count).map(|number| User {
            id: 1_000 + number,
            username: format!("person{number}"),
            name: format!("Person {number}"),
            signs_in: true,
        });
        for project in &mut self.projects {
            project.members.extend(people.clone().map(|person| (person.id, 30)));
        }
        self.users.extend(people);
    }
}

impl User {
    pub fn email(&self) -> String {
        format!("{}@example.org", self.username)
    }
}

impl Project {
    pub fn is_visible_to(&self, user: Option<&User>) -> bool {
        self.public || self.level_of(user) > 0
    }

    /// 0 for who is no member.
    pub fn level_of(&self, user: Option<&User>) -> u64 {
        user.and_then(|user| self.members.get(&user.id).copied()).unwrap_or_default()
    }

    /// The last part of its path.
    pub fn path(&self) -> &str {
        self.path_with_namespace.rsplit('/').next().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.path_with_namespace.rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// What stands for a person where there is no picture.
pub fn initial(name: &str) -> String {
    name.chars().take(1).collect()
}

/// When the seeded world came to be: 2024-05-02, noon.
pub fn beginning() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_714_651_200)
}

//! Memory and threads that work may take.

/// How a plan is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Worker threads.
    pub threads: usize,
    /// Bytes of memory for what is worked on, as far as that can be told beforehand; a job that needs more
    /// runs alone. Mapped files don't count: the system takes their memory back when it is short.
    pub memory: u64,
    /// Whether payloads may be compressed: in containers, not in stock files.
    pub compress: bool,
}

impl Default for Options {
    /// A thread for each core, and [`default_memory`].
    fn default() -> Options {
        Options {
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory: default_memory(),
            compress: false,
        }
    }
}

/// Half of the memory that the machine has, or that the process may take of it, in bytes; 1 GiB where the
/// system does not tell.
pub fn default_memory() -> u64 {
    let kind = sysinfo::RefreshKind::nothing();
    let kind = kind.with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram());
    let Ok(system) = sysinfo::System::new_with_specifics(kind) else {
        return 1 << 30;
    };
    let machine = system.total_memory();
    let limit = system.cgroup_limits().map_or(machine, |l| l.total_memory);
    machine.min(limit) / 2
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_memory() {
        assert!(super::default_memory() > 100 << 20);
    }
}

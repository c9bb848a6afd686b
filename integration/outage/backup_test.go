//go:build integration

package outage

import (
	iofs "io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A backup of the store is restored over it after a kill: the disks hold what the
// backup held, not bits of the lost session.
func TestBackupRestored(t *testing.T) {
	for _, way := range []struct {
		name    string
		restore func(m *machine, backup string)
	}{
		{"in place", restoreInPlace},
		{"renamed file by file", restoreByRename},
		{"renamed as a whole", restoreWhole},
	} {
		t.Run(way.name, func(t *testing.T) {
			onEach(t, func(m *machine) {
				// Before the session: closed in order.
				m.serve()
				m.scatter(1)
				m.stop()
				for _, d := range m.disks {
					d.oracle.flushed()
				}
				m.backedUp("closed", way.restore)
				// During a session, after a flush, and nothing was written meanwhile.
				m.scatter(2)
				for _, d := range m.disks {
					m.must(d.flush())
				}
				m.backedUp("flushed", way.restore)
			})
		})
	}
}

// backedUp makes a backup of a store with nothing unflushed, writes more, kills the
// server, restores the backup and serves again.
func (m *machine) backedUp(name string, restore func(*machine, string)) {
	m.Helper()
	backup := filepath.Join(m.mnt, "backup-"+name)
	m.host("cp", "-a", m.store.Dir, backup)
	then := make([]*oracle, len(m.disks))
	for i, d := range m.disks {
		then[i] = d.oracle.clone()
	}
	if m.server == nil {
		m.serve()
	}
	m.scatter(10)
	for _, d := range m.disks { // blocks that only the lost session has, flushed by it or not
		m.must(d.write(64000, 256))
		m.must(d.flush())
		m.must(d.write(62000, 1024))
	}
	m.kill()
	restore(m, backup)
	for i, d := range m.disks {
		next := d.oracle.next
		d.oracle = then[i]
		d.oracle.next = next
	}
	m.serve()
	m.verifyAs("a backup of a "+name+" store", lived)
}

// restoreInPlace is "cp -a BACKUP/. STORE": files keep their inodes, files that the
// backup does not have stay.
func restoreInPlace(m *machine, backup string) {
	m.Helper()
	m.host("cp", "-a", backup+"/.", m.store.Dir)
}

// restoreByRename is what rsync does: each file is replaced, files that the backup does
// not have stay.
func restoreByRename(m *machine, backup string) {
	m.Helper()
	m.must(filepath.WalkDir(backup, func(p string, e iofs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(backup, p)
		if err != nil {
			return err
		}
		to := filepath.Join(m.store.Dir, rel)
		m.host("cp", "-a", p, to+".restored")
		return os.Rename(to+".restored", to)
	}))
}

// restoreWhole moves the whole store away.
func restoreWhole(m *machine, backup string) {
	m.Helper()
	m.must(os.Rename(m.store.Dir, m.store.Dir+".lost"))
	m.host("cp", "-a", backup, m.store.Dir)
	m.host("rm", "-r", m.store.Dir+".lost")
}

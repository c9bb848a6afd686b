//go:build integration

package outage

import (
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// backupMethod is a method to back up the store and to restore the backup over it.
type backupMethod struct {
	name    string
	backup  func(m *machine, to string)
	restore func(m *machine, from string)
}

var backupMethods = []backupMethod{
	{name: "in place", backup: copyStore, restore: restoreInPlace},
	{name: "in place with new times", backup: copyStore, restore: restoreWithNewTimes},
	{name: "renamed file by file", backup: copyStore, restore: restoreByRename},
	{name: "renamed as a whole", backup: copyStore, restore: restoreWhole},
}

// A backup of the store is restored over it after a kill. The disks hold the content of the backup,
// not bits of the lost session.
func TestBackupRestored(t *testing.T) {
	for _, w := range backupMethods {
		t.Run(w.name, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.backUpAndRestore(w)
			})
		})
	}
}

// The same with a btrfs snapshot in place of the store: files have the inode numbers of the lost
// files, and the device number.
func TestSnapshotRestored(t *testing.T) {
	for _, fs := range filesystems {
		if fs.kind == "btrfs" && (!fs.long || long()) {
			fs.options += ",commit=1" // the kernel's cleaner wakes up at this interval, in seconds
			t.Run(fs.name, func(t *testing.T) {
				t.Parallel()
				newMachine(t, fs).backUpAndRestore(backupMethod{backup: snapshotStore,
					restore: restoreSnapshot})
			})
		}
	}
}

func (m *machine) backUpAndRestore(w backupMethod) {
	m.Helper()
	// Before the session, after an orderly stop.
	m.serve()
	m.scatter(1)
	m.stop()
	for _, d := range m.disks {
		d.oracle.flushed()
	}
	m.testBackup("closed", w)
	// During a session, after a flush without later writes.
	m.scatter(2)
	for _, d := range m.disks {
		m.must(d.flush())
	}
	m.testBackup("flushed", w)
}

// testBackup makes a backup of a store that has nothing unflushed, writes more, kills the server,
// restores the backup and serves again.
func (m *machine) testBackup(name string, w backupMethod) {
	m.Helper()
	backup := filepath.Join(m.mnt, "backup-"+name)
	w.backup(m, backup)
	then := make([]*oracle, len(m.disks))
	for i, d := range m.disks {
		then[i] = d.oracle.clone()
	}
	if m.server == nil {
		m.serve()
	}
	m.scatter(10)
	for _, d := range m.disks { // blocks that only the lost session has, flushed or not
		m.must(d.write(64000, 256))
		m.must(d.flush())
		m.must(d.write(62000, 1024))
	}
	m.kill()
	w.restore(m, backup)
	for i, d := range m.disks {
		next := d.oracle.next
		d.oracle = then[i]
		d.oracle.next = next
	}
	m.serve()
	m.verifyAs("a backup of a "+name+" store", kernelSurvived)
}

func copyStore(m *machine, to string) {
	m.Helper()
	m.runOnHost("cp", "-a", m.store.Dir, to)
}

// restoreInPlace is "cp -a BACKUP/. STORE": files keep their inodes; files that are not in the
// backup stay.
func restoreInPlace(m *machine, backup string) {
	m.Helper()
	m.runOnHost("cp", "-a", backup+"/.", m.store.Dir)
}

// restoreWithNewTimes does the same without the backup's times.
func restoreWithNewTimes(m *machine, backup string) {
	m.Helper()
	m.runOnHost("cp", "-R", "--no-dereference", backup+"/.", m.store.Dir)
}

// restoreByRename works like rsync: it replaces each file; files that are not in the backup stay.
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
		m.runOnHost("cp", "-a", p, to+".restored")
		return os.Rename(to+".restored", to)
	}))
}

// restoreWhole moves the whole store away and copies the backup to its place.
func restoreWhole(m *machine, backup string) {
	m.Helper()
	m.must(os.Rename(m.store.Dir, m.store.Dir+".lost"))
	m.runOnHost("cp", "-a", backup, m.store.Dir)
	m.runOnHost("rm", "-r", m.store.Dir+".lost")
}

func snapshotStore(m *machine, to string) {
	m.Helper()
	m.runOnHost("btrfs", "-q", "subvolume", "snapshot", m.store.Dir, to)
}

// restoreSnapshot puts a snapshot in the store's place, with the device number of the lost store.
// The kernel assigns the lowest free number, so lower ones are occupied meanwhile.
func restoreSnapshot(m *machine, backup string) {
	m.Helper()
	m.runOnHost("btrfs", "-q", "subvolume", "delete", "--commit-after", m.store.Dir)
	m.runOnHost("btrfs", "subvolume", "sync", m.mnt)
	m.dropCaches()
	var taken []string
	for taking := true; taking; {
		dir := filepath.Join(m.dir, fmt.Sprintf("take%d", len(taken)))
		m.must(os.MkdirAll(dir, 0o755))
		m.must(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		taken = append(taken, dir)
		var st unix.Stat_t
		m.must(unix.Stat(dir, &st))
		if st.Dev >= m.device {
			m.must(unix.Unmount(dir, 0))
			taking = false
		}
	}
	m.runOnHost("btrfs", "-q", "subvolume", "snapshot", backup, m.store.Dir)
	for _, dir := range taken[:len(taken)-1] {
		m.must(unix.Unmount(dir, 0))
	}
	m.Logf("device number %d, before %d", m.deviceNumber(), m.device)
}

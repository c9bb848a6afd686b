package store

import (
	"errors"
	"io/fs"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// What a transaction builds and moves to its place: heads, layers, disks and images.

// newHead creates an empty head for m in the transaction and adds it to m and to the journal.
func (tx *txn) newHead(m *Manifest) (uuid.UUID, error) {
	p := layer.CreateParams{
		UUID: uuid.New(), Size: m.Size, BlockSize: uint32(m.BlockSize), Created: tx.s.now().UTC(),
		Perm: 0o600,
	}
	if len(m.Layers) > 0 {
		p.Parent = m.Head().UUID
	}
	if m.Base != nil {
		p.Base, p.BaseSize = m.Base.Fingerprint, m.Base.Size
	}
	if err := tx.s.fs.Mkdir(tx.path("layer"), dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return uuid.Nil, err
	}
	l, err := layer.CreateHead(tx.s.fs, layer.Paths{Map: tx.path("layer", mapFile),
		Data: tx.path("layer", dataFile)}, p)
	if err != nil {
		return uuid.Nil, Classify(err)
	}
	if err := l.Close(); err != nil {
		return uuid.Nil, err
	}
	m.Layers = append(m.Layers, storeLayer(p.UUID, p.Created))
	return p.UUID, tx.journalLayers(m.Name, p.UUID)
}

// moveInHead moves the new head of m, which newHead has created, into layers/. From then on the
// head keeps the layer below, even if no manifest names it. The caller holds the store's lock.
//
// before is the disk's current manifest. Its index entry gets the new head now: the new manifest
// may be damaged later.
func (tx *txn) moveInHead(before, m *Manifest) error {
	tx.s.indexManifest(before, m.Head().UUID)
	return tx.moveInLayer(m)
}

func (tx *txn) moveInLayer(m *Manifest) error {
	return tx.moveIn(tx.path("layer"), layersDir, m.Head().UUID.String())
}

// moveInDisk moves a new disk to its place: its head, unless that lies outside the store, and its
// manifest. The second rename creates the disk. The caller holds the store's lock.
func (tx *txn) moveInDisk(m *Manifest) error {
	if m.Head().inStore() {
		if err := tx.moveInLayer(m); err != nil {
			return err
		}
	}
	if err := tx.moveIn(tx.path("disk"), disksDir, m.Name); err != nil {
		return err
	}
	tx.committed = true
	tx.s.indexManifest(m)
	return nil
}

// stageDisk creates the directory of a new disk with its manifest in the transaction. Its name is
// durable before the head is moved to its place: as long as it is there, the disk was not.
func (tx *txn) stageDisk(m *Manifest) error {
	if err := tx.s.fs.Mkdir(tx.path("disk"), dirPerm); err != nil {
		return err
	}
	// First, so that its name is durable with the manifest. Without a lock file a disk could not be
	// removed on a full file system.
	if err := tx.newLock(); err != nil {
		return err
	}
	if err := tx.s.writeDocument(tx.path("disk", diskFile), m); err != nil {
		return err
	}
	return tx.s.fs.SyncDir(tx.dir)
}

// moveIn durably renames a finished directory to its place. After an error it undoes the rename.
func (tx *txn) moveIn(from, dir, name string) error {
	s := tx.s
	if err := s.fs.MkdirAll(s.path(dir), dirPerm); err != nil {
		return err
	}
	unresolved, err := s.renameDurably(from, s.path(dir, name), dir)
	tx.unresolved = tx.unresolved || unresolved
	return err
}

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// maxDiskAttempts limits the checks of a disk that is promoted meanwhile.
const maxDiskAttempts = 5

// disk checks one disk. It returns nil if the disk has been removed meanwhile. The error is the
// context's.
func (c *checker) disk(name string) (*Report, error) {
	for attempt := 1; ; attempt++ {
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		k := &Report{Kind: KindDisk, Name: name, Problems: []*finding.Finding{}}
		lock, err := c.lockDisk(k)
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			k.addFailure(err)
			return k, nil
		}
		before, whole := c.inspectDisk(k)
		if lock != nil {
			if err := lock.Unlock(); err != nil {
				k.addFailure(err)
			}
			return k, c.ctx.Err()
		}
		if !whole {
			// The process that has it open may just have removed it.
			if exists, err := c.s.exists(c.s.path(disksDir, name)); err == nil && !exists {
				return nil, c.ctx.Err()
			}
		}
		if !whole || attempt == maxDiskAttempts {
			return k, c.ctx.Err()
		}
		if now, err := c.s.Disk(name); err == nil && reflect.DeepEqual(now, before) {
			return k, c.ctx.Err()
		}
		for i := range before.Layers {
			delete(c.layers, c.s.paths(&before.Layers[i]).Map)
		}
	}
}

// lockDisk takes the disk's lock. If another process holds it, lockDisk records the process in k
// and returns nil.
func (c *checker) lockDisk(k *Report) (*Lock, error) {
	v, err := c.s.ServingError(k.Name)
	if err != nil {
		return nil, err
	}
	if v != nil {
		k.Serving = v
		return nil, nil
	}
	lock, err := c.s.lockDisk(c.ctx, k.Name, lockOptions{readOnly: !c.o.Repair})
	if errors.Is(err, ErrInUse) {
		v := c.s.servingNow(k.Name)
		k.Serving = &v
		return nil, nil
	}
	return lock, err
}

// inspectDisk checks a disk that is locked or that another process has open; whole: its manifest is
// readable.
func (c *checker) inspectDisk(k *Report) (m *Manifest, whole bool) {
	m, err := c.s.Disk(k.Name)
	if err != nil {
		k.addError("manifest", err)
	}
	if k.Serving == nil {
		for _, document := range []string{diskFile, quiesceFile} {
			c.reportTempFile(k, err == nil || document != diskFile, disksDir, k.Name, document)
		}
	}
	if err != nil {
		return nil, false
	}
	if k.Serving == nil && !c.consistent(k) {
		return m, true
	}
	c.reportQuiesced(k)
	k.Layers = len(m.Layers)
	c.base(k, m)
	headers := make([]layer.Header, len(m.Layers))
	for i := range m.Layers {
		r := c.layer(k, m, i)
		headers[i] = r.header
		k.Blocks += r.owned
		k.AtLeast = k.AtLeast || r.atLeast
		k.Problems = append(k.Problems, r.Problems...)
		k.Notes = append(k.Notes, r.Notes...)
		if r.Error != "" {
			k.addFailure(errors.New(r.Error))
		}
	}
	c.compareHeaders(k, m, headers)
	c.duplicates(k, m)
	c.adviseClone(k, m)
	if k.Serving == nil {
		c.closeUnclean(k, m, headers[len(headers)-1])
	} else {
		k.addNote("%s: the files that it may change, such as the head, were not checked; of the head only the durable blocks are counted", k.Serving)
	}
	return m, true
}

// consistent reports whether the disk's manifest may be used. An interrupted change that has not
// reached this disk may explain the state of its layers.
func (c *checker) consistent(k *Report) bool {
	err := c.s.refuseUnfinished(k.Name)
	var unfinished *unfinishedError
	switch {
	case err == nil:
		return true
	case errors.As(err, &unfinished):
		k.addError("change of several disks", err)
	default:
		k.addNote("an interrupted change of several disks has not reached this one: the next command that opens it, or check --repair, finishes the change; until then the disk is not checked")
	}
	return false
}

// adviseClone advises a clone of the latest tag if only the head is damaged.
func (c *checker) adviseClone(k *Report, m *Manifest) {
	tags := m.tagsFrom(0)
	if len(tags) == 0 || k.Serving != nil {
		return
	}
	atHead := func(p *finding.Finding) bool { return p.Object == layerObject(m.Head().UUID) }
	for _, p := range k.Problems {
		if p.Status != finding.Repaired && !p.Leftover && !atHead(p) {
			return // a clone would be refused too
		}
	}
	for _, p := range k.Problems {
		if p.Status == finding.Left && atHead(p) {
			p.Advice += fmt.Sprintf("; or go on from what a tag holds, with another disk: %s",
				c.s.command("create", "NEW", "--from", m.Name+"@"+tags[len(tags)-1]))
		}
	}
}

// quiesceRecord is the content of quiesceFile, for a check of its form; package qmp defines the
// members.
type quiesceRecord struct {
	Mode     string `json:"quiesce,omitempty"`
	QMP      string `json:"qmp,omitempty"`
	Agent    string `json:"agent,omitempty"`
	Libvirt  string `json:"libvirt,omitempty"`
	Domain   string `json:"domain,omitempty"`
	Instance string `json:"instance,omitempty"`
}

// reportQuiesced reports a guest that an interrupted promotion has quiesced. It ignores the record
// of a process that has the disk open: that process removes it.
func (c *checker) reportQuiesced(k *Report) {
	if k.Serving != nil {
		return
	}
	forget := c.s.command("resume", "--forget", k.Name)
	exists, err := c.s.QuiesceRecord(k.Name, new(quiesceRecord))
	switch {
	case err != nil && !isDamage(err):
		k.addFailure(err)
	case err != nil:
		k.add(quiesceFile, refused(c.s.path(disksDir, k.Name, quiesceFile), "quiesce record",
			"a document of this version, or none", err,
			"no process can thaw the guest with it: see whether the guest is frozen or paused, then remove the record: "+forget))
	case exists:
		k.addNote("the guest may still be frozen or paused since an interrupted promotion: the next %s thaws it, and %s removes the record", c.s.command("serve", k.Name), forget)
	}
}

// duplicates finds heads that two disks would write, and layers with different files.
func (c *checker) duplicates(k *Report, m *Manifest) {
	head, manifest := m.Head().UUID, c.s.path(disksDir, m.Name, diskFile)
	others := slices.DeleteFunc(slices.Clone(c.users[head]), func(name string) bool {
		return name == m.Name
	})
	if len(others) > 0 {
		k.add(layerObject(head), refused(manifest, "disks that name the head", m.Name+" alone",
			strings.Join(others, ", ")+" too",
			"one of them is a copy: what one writes changes the other; move the copy's directory out of the store"))
	}
	for _, l := range m.Layers {
		for _, name := range c.users[l.UUID] {
			o := c.manifests[name]
			i := slices.IndexFunc(o.Layers, func(ol Layer) bool { return ol.UUID == l.UUID })
			if name == m.Name || i < 0 || c.s.paths(&o.Layers[i]) == c.s.paths(&l) {
				continue
			}
			k.add(layerObject(l.UUID), refused(manifest, "files of the layer",
				o.Layers[i].Map+", as disk "+name+" has it", l.Map,
				"one of them is a copy of the other: use only one of the disks, and move the directory of the other out of the store"))
		}
	}
}

// base checks the base of a disk.
func (c *checker) base(k *Report, m *Manifest) {
	b := m.Base
	if b == nil {
		return
	}
	if b.Image == "" {
		if _, err := c.s.baseSpec(c.ctx, m); err != nil {
			k.addErrorOrMissing("base", b.Path, err)
		} else if err := c.s.sampleBase(m, b.Path); err != nil {
			k.addErrorOrMissing("base", b.Path, err)
		}
		return
	}
	if exists, err := c.s.exists(c.s.path(imagesDir, b.Image)); err != nil || !exists {
		k.add("image "+b.Image, refused(c.s.path(imagesDir, b.Image), "base of the disk",
			"an image", "none", adviceNoImage))
		return
	}
	img := c.image(b.Image)
	for _, p := range img.Problems {
		if !p.Leftover {
			k.Problems = append(k.Problems, p)
		}
	}
	if img.Error != "" {
		k.addFailure(fmt.Errorf("image %s: %s", b.Image, img.Error))
	}
	if doc, err := c.s.Image(b.Image); err == nil && (doc.Fingerprint != b.Fingerprint ||
		doc.Size != b.Size) {
		k.add("image "+b.Image, refused(c.s.path(imagesDir, b.Image, imageFile),
			"fingerprint of the base of the disk",
			b.Fingerprint, doc.Fingerprint, adviceOtherImage))
	}
}

// addErrorOrMissing is addError that reports a missing file too.
func (k *Report) addErrorOrMissing(object, path string, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		k.add(object, refused(path, "file", "one", "none", "put it back"))
		return
	}
	k.addError(object, err)
}

// sampleBase compares the sampled fingerprint of the base.
func (s *Store) sampleBase(m *Manifest, path string) error {
	f, _, err := s.openBase(m, path)
	if err != nil {
		return err
	}
	defer f.Close()
	return checkFingerprint(f, m)
}

// closeUnclean handles what a dead process left unfinished on a disk: unsealed layers and a head
// that was not closed. A repair opens and closes the disk, as the next process to open it would.
func (c *checker) closeUnclean(k *Report, m *Manifest, head layer.Header) {
	var unsealed []*finding.Finding
	for i := range m.Sealed() {
		if p := c.layers[c.s.paths(&m.Layers[i]).Map].unsealed; p != nil &&
			p.Status != finding.Repaired {
			unsealed = append(unsealed, p)
		}
	}
	k.Unclean = head.UUID == m.Head().UUID && head.State == layer.Head && !head.Clean
	if len(unsealed) == 0 && !k.Unclean {
		return
	}
	if c.o.Repair && !c.hasOtherProblems(k, unsealed) && c.openAndClose(k, m, unsealed) {
		if k.Unclean {
			k.addNote("it was not closed in order; its head is sound, and is closed now")
		}
		return
	}
	if k.Unclean {
		k.addNote("it was not closed in order, and holds what was last flushed, or later")
	}
}

// hasOtherProblems reports whether the disk has problems that opening it does not remove.
func (c *checker) hasOtherProblems(k *Report, unsealed []*finding.Finding) bool {
	wrong := k.Error != "" || c.inDoubt || slices.ContainsFunc(k.Problems,
		func(p *finding.Finding) bool {
			return p.Status != finding.Repaired && !p.Leftover && !slices.Contains(unsealed, p)
		})
	if wrong {
		for _, p := range unsealed {
			p.Status, p.Advice = finding.Left, "fix the other problems of the disk first"
		}
	}
	return wrong
}

// openAndClose opens and closes a disk whose lock is held. It marks the layers that this has
// sealed.
func (c *checker) openAndClose(k *Report, m *Manifest, unsealed []*finding.Finding) bool {
	disk, err := c.s.openStack(c.ctx, m, OpenOptions{})
	if err == nil {
		err = disk.Close()
	}
	if err != nil {
		k.addFailure(fmt.Errorf("it could not be opened and closed: %w", err))
		return false
	}
	for i := range m.Sealed() {
		path := c.s.paths(&m.Layers[i]).Map
		p := c.layers[path].unsealed
		if p == nil {
			continue
		}
		if h, err := layer.ReadHeader(c.s.fs, path); err == nil && h.State == layer.Sealed {
			p.Status, p.Advice = finding.Repaired, ""
			continue
		}
		p.Status, p.Advice = finding.Left,
			"another process reads it: stop that, then repair it again"
	}
	return true
}

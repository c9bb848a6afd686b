package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// layerResult holds the findings about the files of one layer. All disks that use it share them.
type layerResult struct {
	object string       // of the problems
	header layer.Header // zero UUID: unknown
	owned  uint64
	// owned counts the durable bits of a map that a process is writing
	atLeast      bool
	hasChecksums bool             // of its data
	unsealed     *finding.Finding // also in Problems
	Report                        // Problems, Notes and Error only
}

// layer checks one layer once, for all disks that name the same map.
func (c *checker) layer(k *Report, m *Manifest, i int) *layerResult {
	l := &m.Layers[i]
	path := c.s.paths(l).Map
	if r := c.layers[path]; r != nil {
		return r
	}
	r := &layerResult{object: layerObject(l.UUID)}
	c.layers[path] = r
	if f := c.untrustedFinding(c.s.layerFiles(l)...); f != nil {
		r.add(r.object, f)
		return r
	}
	if k.Serving != nil {
		// Without a lock: a layer that is being written is locked by its writer.
		h, err := layer.ReadHeader(c.s.fs, path)
		if err == nil && h.State == layer.Head {
			// The writer does not update the count in the header meanwhile.
			r.header, r.atLeast = h, true
			if r.owned, err = layer.CountOwned(c.s.fs, path, &h); err != nil {
				r.addFailure(err)
				return r
			}
			if i < len(m.Layers)-1 {
				r.addNote("layer %s is being sealed, and was not checked", l.UUID)
			}
			return r
		}
	}
	found, err := c.inspect(l, known(m, i))
	switch {
	case errors.Is(err, layer.ErrInUse):
		r.addNote("layer %s is being written by another process, and was not checked", l.UUID)
		r.header, _ = layer.ReadHeader(c.s.fs, path)
		return r
	case err != nil:
		r.addFailure(err)
		return r
	}
	r.header, r.owned, r.hasChecksums = found.Header, found.Owned, found.HasChecksums
	fits := c.belongs(m, i, &r.header)
	for _, f := range found.Findings {
		if f.Remedy == layer.GrowData && !found.Header.Clean && layer.MayHaveUnflushed(c.s.fs,
			found.Header) {
			f.Remedy, f.Advice = layer.NoRemedy,
				"a process that died has left bits that are not in the map: open the disk first (cowblk serve), or restore the layer"
		}
		if !fits {
			// It may be another layer or have a wrong header. Then a remedy proves nothing.
			if f.Remedy == layer.GrowData {
				continue
			}
			f.Remedy = layer.NoRemedy
		}
		r.add(r.object, f)
		if f.Remedy != layer.NoRemedy {
			f.Status, f.Advice = finding.Repairable, ""
		}
	}
	if fits {
		if c.o.Depth == CheckFull && r.header.State == layer.Sealed && !r.hasChecksums {
			r.addNote("layer %s has no checksums of its data yet: it was only read; a process that serves a disk on it adds them", l.UUID)
		}
		c.unflushed(m, l, r)
		c.repairLayer(k, m, i, r)
		c.unsealed(k, m, i, r)
	}
	return r
}

// unflushed finds the unflushed writes of a killed process in a head, or former head, that nobody
// has open.
func (c *checker) unflushed(m *Manifest, l *Layer, r *layerResult) {
	if r.header.State != layer.Head || r.header.Clean || len(r.Problems) > 0 {
		return
	}
	p := c.s.paths(l)
	if r.header.Generation == 0 {
		if err := c.s.refuseLegacyLiveFile(m, l.UUID, layer.RecoverUnflushed); err != nil {
			r.add(r.object, refused(p.Map, "unflushed writes",
				"none of an older cowblk that was killed", err, "go on as it says"))
		}
		return
	}
	f, err := layer.Open(c.s.fs, p, layer.OpenParams{})
	var fault *finding.Finding
	switch {
	case errors.Is(err, layer.ErrUnflushed) && errors.As(err, &fault):
		r.add(r.object, refused(p.Map, "unflushed writes of a process that was killed: "+fault.What,
			fault.Expected, fault.Found, fault.Advice))
		return
	case err != nil:
		return // found before
	}
	defer f.Close()
	if n, dropped := f.Unflushed(); dropped != nil {
		r.addNote("layer %s: a process was killed, and the next open discards the unflushed writes of its guest: %v", l.UUID, dropped)
	} else if n > 0 {
		r.owned += n
		r.addNote("layer %s: a process was killed; %d blocks that its guest has not flushed are in memory, and the next open makes them durable", l.UUID, n)
	}
}

// belongs reports whether a header matches layer i of the manifest.
func (c *checker) belongs(m *Manifest, i int, h *layer.Header) bool {
	kn := known(m, i)
	return kn.Matches(c.s.paths(&m.Layers[i]), h) && (h.Size == m.Size || h.Size < m.Size &&
		i < len(m.Layers)-1)
}

// unsealed reports a lower layer that an interrupted promotion left unsealed; see reopen.
func (c *checker) unsealed(k *Report, m *Manifest, i int, r *layerResult) {
	l := &m.Layers[i]
	if k.Serving != nil || i == len(m.Layers)-1 || r.header.State != layer.Head {
		return
	}
	r.unsealed = r.add(r.object, refused(c.s.paths(l).Map, "state of a layer below the head",
		layer.Sealed, layer.Head, ""))
	r.unsealed.Status, r.unsealed.Leftover = finding.Repairable, true
	r.unsealed.Remedy = "seal it: sync it and write its checksum, as the next open would"
}

// known returns what the manifest says about layer i.
func known(m *Manifest, i int) layer.Known {
	l := &m.Layers[i]
	kn := layer.Known{UUID: l.UUID, BlockSize: uint32(m.BlockSize), Size: m.Size,
		Created: l.Created}
	if i > 0 {
		kn.Parent = m.Layers[i-1].UUID
	}
	if m.Base != nil {
		kn.Base, kn.BaseSize = m.Base.Fingerprint, m.Base.Size
	}
	return kn
}

func (c *checker) inspect(l *Layer, kn layer.Known) (*layer.Inspection, error) {
	p := layer.InspectParams{Known: kn, Map: c.o.Depth != CheckFast}
	if c.o.Depth == CheckFull {
		p.Data = func(done, total int64) error {
			c.progress(l.Data, done, total)
			return c.ctx.Err()
		}
	}
	return layer.Inspect(c.s.fs, c.s.paths(l), p)
}

func (c *checker) progress(what string, done, total int64) {
	if c.o.Progress != nil {
		c.o.Progress(what, done, total)
	}
}

// repairLayer carries out the remedies that Inspect named, if this is a repair.
func (c *checker) repairLayer(k *Report, m *Manifest, i int, r *layerResult) {
	if !c.o.Repair || !slices.ContainsFunc(r.Problems, func(p *finding.Finding) bool {
		return p.Status == finding.Repairable
	}) {
		return
	}
	done, err := layer.Repair(c.s.fs, c.s.paths(&m.Layers[i]), known(m, i))
	for _, p := range r.Problems {
		if p.Status == finding.Repairable {
			c.applyRemedy(k, p, func() error {
				if slices.Contains(done, p.Remedy) {
					return nil
				}
				return err
			})
		}
	}
}

// compareHeaders compares the headers with the manifest and with each other. A difference cannot be
// repaired: it does not show which of the two is wrong.
func (c *checker) compareHeaders(k *Report, m *Manifest, headers []layer.Header) {
	var below int64
	for i := range m.Layers {
		h, l := &headers[i], &m.Layers[i]
		if h.UUID == uuid.Nil {
			continue
		}
		kn := known(m, i)
		wrong := func(what string, expected, found any) {
			k.add(layerObject(l.UUID), refused(c.s.paths(l).Map, what, expected, found,
				"put back the layer, or the manifest, that belongs here; nobody but you can know which one is wrong"))
		}
		top := i == len(m.Layers)-1
		switch {
		case h.UUID != l.UUID:
			wrong("UUID", l.UUID, h.UUID)
			continue // all other fields would differ too
		case h.Parent != kn.Parent:
			wrong("parent", kn.Parent, h.Parent)
		}
		if h.BlockSize != kn.BlockSize {
			wrong("block size in bytes", kn.BlockSize, h.BlockSize)
		}
		if h.Base != kn.Base || h.BaseSize != kn.BaseSize {
			wrong("fingerprint and size of the base", baseText(kn.Base, kn.BaseSize),
				baseText(h.Base, h.BaseSize))
		}
		if h.DataOffset != l.DataOffset {
			wrong("offset of the data in bytes", l.DataOffset, h.DataOffset)
		}
		switch {
		case top && h.Size != m.Size:
			wrong("size of the disk in bytes", m.Size, h.Size)
		case h.Size < below || h.Size > m.Size:
			wrong("size of the disk in bytes", fmt.Sprintf("%d to %d", below, m.Size), h.Size)
		}
		if top && h.State == layer.Sealed {
			wrong("state of the top layer", layer.Head, h.State)
		}
		if h.Size <= m.Size {
			below = h.Size
		}
	}
}

func baseText(f layer.Fingerprint, size int64) string {
	if f.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%s, %d bytes", f, size)
}

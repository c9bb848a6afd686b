package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"

	"cowblk/cow/store"
)

// tagInfo is the JSON output of "cowblk info DISK@TAG".
type tagInfo struct {
	Kind      string       `json:"kind"` // "tag"
	Name      string       `json:"name"` // DISK@TAG
	Disk      string       `json:"disk"`
	Tag       string       `json:"tag"`
	UUID      uuid.UUID    `json:"uuid"`       // of the layer
	Size      int64        `json:"size"`       // bytes; the disk may have grown since
	BlockSize int          `json:"block-size"` // bytes
	Created   time.Time    `json:"created"`    // when the layer became a head
	Sealed    *time.Time   `json:"sealed,omitempty"`
	Base      *store.Base  `json:"base,omitempty"` // absent: zeros
	Depth     int          `json:"depth"`          // layers up to and including this one
	Map       string       `json:"map"`            // as in the manifest
	Data      string       `json:"data"`
	Usage     *store.Usage `json:"usage,omitempty"`
	SharedBy  []string     `json:"shared-by"` // other disks
	Error     string       `json:"error,omitempty"`
}

func (a *app) printTag(s *store.Store, ref store.Ref) error {
	m, err := s.Disk(ref.Name)
	if err != nil {
		return err
	}
	i, err := m.Tagged(ref.Tag)
	if err != nil {
		return err
	}
	l := &m.Layers[i]
	info := tagInfo{
		Kind: "tag", Name: ref.String(), Disk: m.Name, Tag: l.Tag, UUID: l.UUID,
		BlockSize: m.BlockSize, Created: l.Created, Sealed: l.Sealed,
		Base: m.Base, Depth: i + 1, Map: l.Map, Data: l.Data, SharedBy: layerUsers(s, m)[i],
	}
	usage, damage := s.LayerUsage(l)
	if damage != nil {
		info.Error = damage.Error()
	} else {
		info.Usage, info.Size = usage, usage.Size
	}
	if a.json {
		return errors.Join(a.printJSON(info), damage)
	}
	size, owns := "?", "?"
	if usage != nil {
		size = fmt.Sprintf("%s (%s)", bytesText(info.Size), countText(info.Size, "byte"))
		owns = fmt.Sprintf("%s, %s", ownsText(usage), countText(int64(usage.Blocks), "block"))
	}
	sealed := "not yet"
	if l.Sealed != nil {
		sealed = agoText(*l.Sealed)
	}
	shared := "no other disk"
	if len(info.SharedBy) > 0 {
		shared = firstNames(info.SharedBy, 10)
	}
	return errors.Join(a.printTable([][]string{
		{"tag", info.Name},
		{"size", size},
		{"block size", bytesText(int64(m.BlockSize))},
		{"sealed", sealed},
		{"layer", info.UUID.String()},
		{"owns", owns},
		{"depth", humanize.Comma(int64(info.Depth))},
		{"base", baseText(m.Base)},
		{"shared with", shared},
	}, columns{}), damage)
}

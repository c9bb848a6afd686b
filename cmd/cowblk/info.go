package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
)

// diskInfo is the JSON output of "cowblk info DISK".
type diskInfo struct {
	Kind string `json:"kind"`
	*store.Manifest
	Socket  string         `json:"socket"` // in use, or the default
	Serving *store.Serving `json:"serving,omitempty"`
	State   string         `json:"state,omitempty"` // why the holder of the disk is unknown
	// Daemon is the answer of the process that serves the disk.
	Daemon *daemon.DiskInfo `json:"live,omitempty"`
	Usage  []layerInfo      `json:"usage"` // in the order of layers
}

type layerInfo struct {
	*store.Usage
	Shared     bool     `json:"shared"`             // other disks use it
	SharedBy   []string `json:"shared-by,omitzero"` // with --users
	Error      string   `json:"error,omitempty"`
	Unreadable bool     `json:"unread,omitempty"` // could not be read, as Error says; not necessarily damaged
}

// imageInfo is the JSON output of "cowblk info IMAGE".
type imageInfo struct {
	Kind string `json:"kind"`
	*store.Image
	Path      string   `json:"path"`
	Allocated int64    `json:"allocated"` // bytes on the file system
	Users     []string `json:"users"`
}

func newInfo(a *app) *cobra.Command {
	var users bool
	cmd := &cobra.Command{
		Use:   "info NAME[@TAG]",
		Short: "Show everything about an image, a disk or a tag",
		Long: `Show everything about an image, a disk or a tag. --users also names the other disks that use a disk's
layers, which reads the manifest of every disk in the store.`,
		Example:           "  cowblk info vm1\n  cowblk info vm1@configured\n  cowblk info vm1 --users\n  cowblk info debian-12 --json | jq -r '.\"chunk-sha256\"'",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames, imageNames, tagNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := store.ParseRef(args[0])
			if err != nil {
				return err
			}
			s, err := a.openStore()
			if err != nil {
				return err
			}
			if ref.Tag != "" {
				return a.printTag(s, ref)
			}
			img, err := s.Image(ref.Name)
			if errors.Is(err, store.ErrNotFound) {
				m, err := s.Disk(ref.Name)
				if err != nil {
					return err
				}
				return a.printDisk(cmd.Context(), s, m, users)
			}
			if err != nil {
				return err
			}
			return a.printImage(s, img)
		},
	}
	cmd.Flags().BoolVar(&users, "users", false, "name the other disks that use a disk's layers")
	return cmd
}

func (a *app) printImage(s *store.Store, img *store.Image) error {
	roots, _ := s.Tree() // a damaged disk must not hide its image
	info := imageInfo{Kind: store.KindImage, Image: img, Path: s.ImageData(img.Name),
		Users: []string{}}
	if n, err := s.Find(roots, img.Name); err == nil {
		info.Allocated = n[0].Allocated
		info.Users = append(info.Users, n[0].UserNames...)
	}
	if a.json {
		return a.printJSON(info)
	}
	users := "no disk"
	if len(info.Users) > 0 {
		users = strings.Join(info.Users, ", ")
	}
	rows := [][]string{
		{"image", img.Name},
		{"size", fmt.Sprintf("%s (%s)", bytesText(img.Size), countText(img.Size, "byte"))},
		{"allocated", bytesText(info.Allocated)},
	}
	if img.ChunkSHA256 != "" {
		rows = append(rows, []string{"chunk digest", img.ChunkSHA256})
	}
	if img.SHA256 != "" {
		rows = append(rows, []string{"SHA-256", img.SHA256})
	}
	rows = append(rows, [][]string{
		{"imported", agoText(img.Imported)},
		{"from", fmt.Sprintf("%s (%s)", img.Source, img.Format)},
	}...)
	for _, b := range img.Backing {
		rows = append(rows, []string{"with", b.String()})
	}
	return a.printTable(append(rows, [][]string{
		{"data", info.Path},
		{"base of", users},
	}...), columns{})
}

func (a *app) printDisk(ctx context.Context, s *store.Store, m *store.Manifest, users bool) error {
	info := diskInfo{Kind: store.KindDisk, Manifest: m, Usage: []layerInfo{}}
	var damage []error
	var err error
	if info.Serving, err = s.ServingError(m.Name); err != nil {
		info.State = "not known: " + err.Error()
		damage = append(damage, err)
	}
	// serve reports a path that is too long.
	info.Socket, _ = s.Socket(m.Name)
	if info.Serving != nil && info.Serving.Socket != "" {
		info.Socket = info.Serving.Socket
	}
	shared, err := s.SharedLayers(m)
	if err != nil {
		damage = append(damage, err)
	}
	others := make([][]string, len(m.Layers))
	if users {
		others = layerUsers(s, m)
	}
	if info.Daemon, err = client.QueryDisk(ctx, s, info.Serving, m.Name); err != nil {
		damage = append(damage, err)
	}
	for i := range m.Layers {
		u, err := s.LayerUsage(&m.Layers[i])
		li := layerInfo{Usage: u, Shared: i < shared || len(others[i]) > 0, SharedBy: others[i]}
		if err != nil {
			li.Error, li.Unreadable = err.Error(), !errors.Is(err, store.ErrRefused)
			damage = append(damage, err)
		}
		if l := info.Daemon; u != nil && l != nil && i == len(m.Layers)-1 {
			u.SetServed(l.HeadBlocks, m.BlockSize)
		}
		info.Usage = append(info.Usage, li)
	}
	if a.json {
		return errors.Join(append(damage, a.printJSON(info))...)
	}
	return errors.Join(append(damage, a.printDiskText(&info))...)
}

func (a *app) printDiskText(info *diskInfo) error {
	m := info.Manifest
	state := "stopped"
	switch {
	case info.Serving != nil:
		state = info.Serving.String()
	case info.State != "":
		state = info.State
	}
	rows := [][]string{
		{"disk", m.Name},
		{"size", fmt.Sprintf("%s (%s)", bytesText(m.Size), countText(m.Size, "byte"))},
		{"block size", bytesText(int64(m.BlockSize))},
		{"created", agoText(m.Created)},
		{"state", state},
		{"socket", info.Socket},
		{"base", baseText(m.Base)},
	}
	if l := info.Daemon; l != nil {
		rows = append(rows, []string{"guest", guestText(l)})
		rows = append(rows, frontEndRows(l, info.Socket)...)
	}
	if m.TableStart != 0 {
		rows = append(rows, []string{"table start", "sector " + humanize.Comma(m.TableStart)})
	}
	if err := a.printTable(rows, columns{}); err != nil {
		return err
	}
	a.printf("\nlayers, newest first:")
	rows = [][]string{{"  #", "TAG", "STATE", "OWNS", "BLOCKS", "SHARED", "UUID"}}
	for i := len(m.Layers) - 1; i >= 0; i-- {
		l, u := &m.Layers[i], info.Usage[i]
		tag, shared := "-", "-"
		if l.Tag != "" {
			tag = "@" + l.Tag
		}
		if u.Shared {
			shared = "yes"
		}
		if len(u.SharedBy) > 0 {
			shared = firstNames(u.SharedBy, 3)
		}
		state, owns, blocks := "DAMAGED", "?", "?"
		if u.Unreadable {
			state = "unread"
		}
		if u.Usage != nil {
			state, owns, blocks = u.State, bytesText(u.Owned), humanize.Comma(int64(u.Blocks))
			if u.Flushed {
				owns += " at the last flush"
			}
		}
		rows = append(rows, []string{"  " + strconv.Itoa(i+1), tag, state, owns, blocks, shared,
			l.UUID.String()})
	}
	return a.printTable(rows, columns{})
}

// guestText describes the connection and cache mode of a served disk.
func guestText(l *daemon.DiskInfo) string {
	text := "not connected"
	if l.Connected {
		text = "connected, write cache on"
		if !l.WriteCache {
			text = "connected, write cache off"
		}
	}
	if l.Cache.Direct {
		text += ", past the page cache"
	}
	if l.ReadOnly {
		text += ", read-only"
	}
	return text
}

func baseText(b *store.Base) string {
	switch {
	case b == nil:
		return "none (zeros)"
	case b.Image != "":
		return fmt.Sprintf("image %s (%s)", b.Image, bytesText(b.Size))
	case b.Offset != 0:
		return fmt.Sprintf("%s from byte %s (%s), in place", b.Path, humanize.Comma(b.Offset),
			bytesText(b.Size))
	}
	return fmt.Sprintf("%s (%s), in place", b.Path, bytesText(b.Size))
}

// layerUsers returns, for each layer of m, the other disks that use it. It reads the manifest of
// every disk.
func layerUsers(s *store.Store, m *store.Manifest) [][]string {
	disks, _ := s.Disks() // list and tree report those that cannot be read
	others := map[uuid.UUID][]string{}
	for _, d := range disks {
		if d.Name == m.Name {
			continue
		}
		for _, l := range d.Layers {
			others[l.UUID] = append(others[l.UUID], d.Name)
		}
	}
	all := make([][]string, len(m.Layers))
	for i, l := range m.Layers {
		all[i] = append([]string{}, others[l.UUID]...)
	}
	return all
}

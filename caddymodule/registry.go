package caddymodule

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddy.RegisterModule(MemoryRegistry{})
}

// RegistryOpener is what a module in the namespace iottunnel.registries provides.
type RegistryOpener interface {
	// Identity is the same for two configurations of the same registry, and of
	// no other: across a reload it decides whether the open one is kept.
	Identity() string
	// Open opens the registry. It is not called while one with the same identity
	// is open in this process.
	Open(logger *slog.Logger) (registry.Registry, error)
}

// MemoryRegistry keeps the records of a single node in memory, and in a file
// that survives crashes. Only one process can use the file at a time.
type MemoryRegistry struct {
	// The file. Default: `iottunnel/leases.db` in Caddy's data directory.
	Path string `json:"path,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (MemoryRegistry) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.registries.memory",
		New: func() caddy.Module { return new(MemoryRegistry) },
	}
}

// Provision finds out where the file is. It does not touch it.
func (m *MemoryRegistry) Provision(caddy.Context) error {
	path, err := caddy.NewReplacer().ReplaceOrErr(m.Path, true, true)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if path == "" {
		path = filepath.Join(caddy.AppDataDir(), "iottunnel", "leases.db")
	}
	if m.Path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	return nil
}

// Identity is the file.
func (m *MemoryRegistry) Identity() string { return "memory:" + m.Path }

// Open opens the file, and makes it when there is none.
func (m *MemoryRegistry) Open(logger *slog.Logger) (registry.Registry, error) {
	if err := os.MkdirAll(filepath.Dir(m.Path), 0o700); err != nil {
		return nil, err
	}
	return registry.OpenMemory(registry.MemoryOptions{Path: m.Path, Logger: logger})
}

var memorySettings = []setting[*MemoryRegistry]{
	textSetting("registry memory: path", func(m *MemoryRegistry) *string { return &m.Path }, "a file"),
}

// UnmarshalCaddyfile sets up the registry from Caddyfile tokens. Syntax:
//
//	registry memory {
//		path <file>
//	}
func (m *MemoryRegistry) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the driver's name
	if d.NextArg() {
		return d.Errf("registry memory: takes no value, given %q; its file is set in a block: registry memory { path FILE }", d.Val())
	}
	return parseBlock(d, "registry memory", m, memorySettings)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*MemoryRegistry)(nil)
	_ caddyfile.Unmarshaler = (*MemoryRegistry)(nil)
	_ RegistryOpener        = (*MemoryRegistry)(nil)
)

// Package caddymodule makes Caddy an iottunnel edge.
package caddymodule

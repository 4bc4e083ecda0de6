//go:build unix

package service

import (
	"strings"
)

// label is how launchd knows the service.
const label = "org.iottunnel.agent"

func launchd(run func(...string) (string, error)) Manager {
	const path, target = "/Library/LaunchDaemons/" + label + ".plist", "system/" + label
	return &scripted{
		name: "launchd", path: path, mode: 0o644, render: plist, run: run,
		enable:  [][]string{{"launchctl", "enable", target}},
		disable: [][]string{{"-launchctl", "bootout", target}},
		// bootstrap fails where it was done before; what counts is kickstart.
		start: [][]string{{"-launchctl", "bootstrap", "system", path}, {"launchctl", "kickstart", target}},
		stop:  [][]string{{"launchctl", "bootout", target}},
		log:   "/Library/Logs/" + Name + ".log",
		state: func(run func(...string) (string, error)) (State, string, error) {
			text, err := run("launchctl", "print", target)
			switch {
			case err != nil: // not loaded
				return Stopped, "", nil
			case strings.Contains(text, "state = running"):
				return Running, "", nil
			}
			return Stopped, "loaded, and about to start", nil
		},
	}
}

// xmlText writes text into XML (XML 1.0 §2.4). Ends of lines would be read as others
// (§2.11).
var xmlText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;", "\t", "&#x9;", "\n", "&#xA;", "\r", "&#xD;")

// plist is launchd.plist(5).
func plist(s Spec) (string, error) {
	var b strings.Builder
	value := func(indent, kind, text string) {
		b.WriteString(indent + "<" + kind + ">" + xmlText.Replace(text) + "</" + kind + ">\n")
	}
	pair := func(key, text string) {
		value("\t", "key", key)
		value("\t", "string", text)
	}
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- ` + written + ` -->
<plist version="1.0">
<dict>
`)
	pair("Label", label)
	value("\t", "key", "ProgramArguments")
	b.WriteString("\t<array>\n")
	for _, a := range append([]string{s.Program}, s.Args...) {
		value("\t\t", "string", a)
	}
	b.WriteString("\t</array>\n")
	if s.User != "" {
		pair("UserName", s.User)
	}
	b.WriteString("\t<key>RunAtLoad</key>\n\t<true/>\n\t<key>KeepAlive</key>\n\t<true/>\n\t<key>ThrottleInterval</key>\n\t<integer>10</integer>\n")
	pair("ProcessType", "Background")
	pair("StandardErrorPath", "/Library/Logs/"+Name+".log")
	pair("StandardOutPath", "/Library/Logs/"+Name+".log")
	b.WriteString("</dict>\n</plist>\n")
	return b.String(), nil
}

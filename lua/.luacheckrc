std = "ngx_lua"
max_line_length = 88
files["iottunnel/pages.lua"] = { max_line_length = false }
files["spec"] = { std = "+busted", globals = { "ngx" } }

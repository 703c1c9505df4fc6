"""How runs stand, for the commands that show or change them: record, queue, status and figures, joined."""

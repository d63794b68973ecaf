"""Every notebook is run: solutions by papermill in smoke mode, readers' notebooks by nbval in quick mode."""

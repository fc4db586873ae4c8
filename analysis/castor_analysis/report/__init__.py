"""One run for a person: what failed, what it cost, how it was recovered, what else it had cost."""

from castor_analysis.report.page import report_page
from castor_analysis.report.storage_bill import storage_bill
from castor_analysis.report.story import Story, read_story

__all__ = ["Story", "read_story", "report_page", "storage_bill"]
